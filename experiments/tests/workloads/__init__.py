"""Tests of `experiments.workloads`."""
