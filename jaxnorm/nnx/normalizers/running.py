"""What the layers with running statistics share: the arguments of Flax's BatchNorm."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class RunningStatistics(nnx.Module):
    """Base of the layers, not to be used by itself; the arguments are those of `nnx.BatchNorm`."""

    def __init__(
        self,
        num_features: int,
        initial: Any,
        *,
        use_running_average: bool | None,
        axis: int,
        momentum: float,
        epsilon: float,
        dtype: Any,
        param_dtype: Any,
        use_bias: bool,
        use_scale: bool,
        bias_init: Any,
        scale_init: Any,
        axis_name: Any,
        axis_index_groups: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_features = num_features
        self.kind = type(initial)
        for name, value in zip(initial._fields, initial, strict=True):
            setattr(self, name, nnx.BatchStat(value))
        self.scale = self.bias = nnx.data(None)
        if use_scale:
            self.scale = nnx.Param(scale_init(rngs.params(), (num_features,), param_dtype))
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), (num_features,), param_dtype))
        self.use_running_average, self.axis = use_running_average, axis
        self.momentum, self.epsilon, self.dtype = momentum, epsilon, dtype
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups

    def set_view(self, use_running_average: bool | None = None, **kwargs: Any) -> dict[str, Any]:
        """What `nnx.view` calls."""
        if use_running_average is not None:
            self.use_running_average = use_running_average
        return kwargs

    def evaluates(self, use_running_average: bool | None) -> bool:
        """Whether the running statistics are used; what the call says comes first."""
        for chosen in (use_running_average, self.use_running_average):
            if chosen is not None:
                return chosen
        raise ValueError(
            "use_running_average: got None, expected True or False, in the call, the constructor "
            "or nnx.view"
        )

    def affine(self) -> tuple[jax.Array | None, jax.Array | None]:
        """(scale, bias), each None where the layer has none."""
        arrays = [None if each is None else each[...] for each in (self.scale, self.bias)]
        return arrays[0], arrays[1]

    def running(self) -> Any:
        """The running statistics, a named tuple."""
        return self.kind(*(getattr(self, name)[...] for name in self.kind._fields))

    def store(self, new: Any) -> None:
        """The new running statistics."""
        for name, value in zip(self.kind._fields, new, strict=True):
            getattr(self, name)[...] = value

    def settings(self) -> dict[str, Any]:
        """The keywords that all the functions take."""
        names = ("axis", "momentum", "epsilon", "dtype", "axis_name", "axis_index_groups")
        return {name: getattr(self, name) for name in names}


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


#: Flax's own, in whose place they stand.
ZEROS, ONES, FLOAT32 = nnx.initializers.zeros_init(), nnx.initializers.ones_init(), jnp.float32
