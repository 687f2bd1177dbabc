"""What a comparison cannot begin with, said in words."""

from __future__ import annotations


class CannotCompare(ValueError):
    """The two models cannot be compared; the text says what was got and what was expected."""
