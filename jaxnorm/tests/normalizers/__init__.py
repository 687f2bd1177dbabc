"""Tests of the other normalizers."""
