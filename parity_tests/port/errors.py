"""What a comparison cannot begin with, said in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class CannotCompare(ValueError):
    """The two models cannot be compared; the text says what was got and what was expected."""


def called(argument: str, function: Callable[[], Result]) -> Result:
    """What a function of the user's model gives; its errors are said with the model's name."""
    try:
        return function()
    except CannotCompare:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CannotCompare(
            f"{argument}: the model raised {type(error).__name__}: {text[0] if text else ''}; "
            "expected one that takes these inputs, see inputs=, flax_inputs=, layout= and modes="
        ) from error
