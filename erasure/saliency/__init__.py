"""A score for each weight, and the mask made from the scores."""
