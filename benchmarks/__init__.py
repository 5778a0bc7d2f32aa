"""What is timed, and against what. `python -m benchmarks` prints ratios of one run; nothing here is asserted in a test."""
