"""Methods that edit how cross-attention reads the words of a concept."""
