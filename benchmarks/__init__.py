"""What is timed, and against what: `python -m benchmarks` prints ratios of one run."""
