"""Where the layers that draw noise have their keys from."""

from typing import Any

import jax
from flax import nnx


def stream(rngs: nnx.Rngs | None, name: str) -> Any:
    """A stream of random numbers for a layer, as `nnx.Dropout` has it, or None."""
    return nnx.data(None) if rngs is None else rngs[name].fork()


def key_of(rngs: Any, layer: Any) -> jax.Array:
    """A key of what the call gives, or of the layer's stream."""
    found = layer.rngs if rngs is None else rngs
    if found is None:
        raise ValueError(
            "rngs: got None, expected nnx.Rngs with a stream 'noise', in the constructor or the "
            "call; or give the noise"
        )
    if isinstance(found, nnx.Rngs):
        return found.noise()
    return found if isinstance(found, jax.Array) else found()
