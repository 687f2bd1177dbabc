"""What was changed in a model after its gates were found: said, and what to do."""

import warnings
from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """Of what; what was got, what was expected."""

    of: str
    got: str
    expected: str


def unknown(path: str) -> Problem:
    """The problem of a layer of which a report says nothing, and which is left alone."""
    return Problem(f"gate of {path!r}", "a report without it", "one with every layer")


def warn(problems: Iterable[Problem], remedy: str) -> None:
    """One warning of all problems."""
    shown = [f"{p.of}: got {p.got}, expected {p.expected}" for p in problems]
    if shown:
        more = [f"and {len(shown) - 3} more"] if len(shown) > 3 else []
        text = "; ".join([*shown[:3], *more, f"if the model was changed, {remedy}"])
        warnings.warn(text, UserWarning, stacklevel=4)
