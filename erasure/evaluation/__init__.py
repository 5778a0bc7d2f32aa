"""Outputs of a model, the classifiers that label them, and the metrics over them."""
