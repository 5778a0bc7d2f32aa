"""The one training loop, what it trains, and recipes of the shipped models."""
