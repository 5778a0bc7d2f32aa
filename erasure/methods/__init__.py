"""Erasure methods; a file is a name."""
