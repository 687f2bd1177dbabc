"""Experiments with the neuron-wise rule; run them with ``python -m experiments``."""
