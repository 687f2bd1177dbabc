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


def seldom(first: Any, one: Callable[..., Any], other: Callable[..., Any], *args: Any) -> Any:
    """`either`, where `one` is right in both cases, and for elements in registers costs nothing.

    That is so on accelerators, where a branch has its price: what is around it is not fused with
    it, and a GPU's host waits to know.
    """
    if not isinstance(first, Tracer):
        return either(first, one, other, *args)
    return lax.platform_dependent(
        *args, cpu=lambda *args: lax.cond(first, one, other, *args), default=one
    )
