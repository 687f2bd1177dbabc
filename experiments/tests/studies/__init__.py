"""Tests of `experiments.studies`."""
