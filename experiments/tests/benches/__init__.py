"""Tests of `experiments.benches`."""
