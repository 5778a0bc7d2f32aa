"""Audits: what a model still draws, judged by detectors, with counts, intervals and a verdict."""
