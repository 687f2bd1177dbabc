"""Tests of torchnorm alone."""
