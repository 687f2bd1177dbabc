"""Tests of the job `tpu`."""
