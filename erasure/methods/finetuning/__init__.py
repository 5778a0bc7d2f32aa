"""Methods that train on with a loss over forget and retain data."""
