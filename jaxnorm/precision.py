"""In what precision statistics and coordinates are computed."""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_float32(dtype: Any, other: Any = jnp.float32) -> Any:
    """The wider of the two, also under ``jax.numpy_dtype_promotion("strict")``."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, other)
