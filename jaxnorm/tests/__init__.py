"""Tests of jaxnorm alone."""
