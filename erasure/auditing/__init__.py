"""Audits: how often a model shows a concept, by detectors on its images, with counts, intervals and a verdict."""
