"""Of `experiments.bench`."""
