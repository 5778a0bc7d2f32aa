"""Methods that take one step computed from the curvature of the loss."""
