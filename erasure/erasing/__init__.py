"""The erase verb, and what is to be erased with its data."""
