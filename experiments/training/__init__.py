"""Training: many runs at once, in one compiled program."""
