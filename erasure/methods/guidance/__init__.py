"""Methods built on negative guidance: trained into the weights, or applied while drawing."""
