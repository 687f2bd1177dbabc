"""Tests of `jaxnorm.program`."""
