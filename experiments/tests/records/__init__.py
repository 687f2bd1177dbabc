"""Tests of `experiments.records`."""
