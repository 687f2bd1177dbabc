"""Tests of the experiments: ``pytest experiments``."""
