"""Concepts and prompt sets in words, and the filter in front of every prompt."""
