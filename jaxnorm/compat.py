"""What older versions call otherwise: each entry says which version it is for."""

from typing import Any

import jax
from flax import nnx

#: The values of an nnx tree, without the variables around them. flax < 0.12.7: `nnx.pure`.
as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure


def varying_axes(array: Any) -> frozenset[Any]:
    """The manual mesh axes along which an array varies. jax < 0.10: ``vma`` of its type."""
    kind: Any = jax.typeof(array)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return kind.vma
