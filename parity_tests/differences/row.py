"""One row: the same question to both frameworks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """A question, and a function for each framework that measures its answer."""

    what: str
    flax: Callable[[], Any]
    torch: Callable[[], Any]
    #: What makes the two the same, or what there is to know.
    remedy: str = ""


def measured(ask: Callable[[], Any]) -> str:
    """An answer as it is printed; of an error its class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            answer = ask()
        except Exception as error:
            return type(error).__name__
    if isinstance(answer, str | tuple | int):
        return str(answer)
    if any(length != 1 for length in getattr(answer, "shape", ())):
        return f"an array of shape {tuple(answer.shape)}"
    number = getattr(answer, "item", lambda: answer)()
    return f"{number:.5g}" if isinstance(number, float) else str(number)


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    lines = ["| | Flax, Optax | PyTorch | |", "| :-- | --: | --: | :-- |"]
    lines += [f"| {r.what} | {measured(r.flax)} | {measured(r.torch)} | {r.remedy} |" for r in rows]
    return "\n".join(lines)
