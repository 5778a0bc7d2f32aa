"""Methods that train the forget data towards other labels: the SalUn family."""
