"""Metrics; a file is a name."""
