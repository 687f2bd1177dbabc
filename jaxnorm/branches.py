"""One of two computations."""

from collections.abc import Callable
from typing import Any

from jax import lax
from jax.core import Tracer


def either(first: Any, one: Callable[..., Any], other: Callable[..., Any], *args: Any) -> Any:
    """`lax.cond`, but where nothing is traced, which that would compile anew in every call."""
    if isinstance(first, Tracer):
        return lax.cond(first, one, other, *args)
    return (one if first else other)(*args)
