"""Files that other tools load, and the proof of what changed in them."""
