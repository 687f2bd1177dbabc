"""Tests of the part that they are named after."""
