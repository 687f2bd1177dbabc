"""What a training step costs: `python -m experiments bench`."""
