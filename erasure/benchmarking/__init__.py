"""Benchmarks: methods over scenarios and seeds, in one table beside the original model."""
