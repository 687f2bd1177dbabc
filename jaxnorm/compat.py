"""What older versions call or do otherwise: each entry says which version it is for."""

from typing import Any

import jax
from flax import nnx
from jax.core import ShapedArray

try:
    from jax.extend.core import get_opaque_trace_state as get_opaque_trace_state
except ImportError:  # jax 0.9.0 and older have it elsewhere
    from jax.core import get_opaque_trace_state as get_opaque_trace_state

#: The values of an nnx tree without their variables. flax < 0.12.7: under another name.
as_pure: Any = getattr(nnx, "as_pure", None) or nnx.pure


def varying_axes(array: Any) -> frozenset[Any]:
    """The manual mesh axes along which an array, or one of that type, varies.

    jax < 0.10: another attribute.
    """
    kind: Any = array if isinstance(array, ShapedArray) else jax.typeof(array)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return kind.vma
