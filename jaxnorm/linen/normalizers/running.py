"""What the layers with running statistics share: the fields of Flax's BatchNorm."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class RunningStatistics(nn.Module):
    """Base of the layers, not to be used by itself; the fields are those of `flax.linen.BatchNorm`.

    The subclasses say what they have beside them.
    """

    use_running_average: bool | None = None
    axis: int = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Any = nn.initializers.zeros
    scale_init: Any = nn.initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None

    @nn.nowrap
    def evaluates(self, use_running_average: bool | None) -> bool:
        """Whether the running statistics are used: while initializing, always."""
        chosen = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        return chosen or self.is_initializing()

    @nn.nowrap
    def affine(self, channels: int) -> tuple[jax.Array | None, jax.Array | None]:
        """(scale, bias), each None where the layer has none."""
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (channels,), self.param_dtype)
        return scale, bias

    @nn.nowrap
    def running(self, initial: Any) -> tuple[Any, Any]:
        """The running statistics, a named tuple, and a function that stores new ones."""
        names = initial._fields
        variables = [
            self.variable("batch_stats", name, lambda value=value: value)
            for name, value in zip(names, initial, strict=True)
        ]

        def store(new: Any) -> None:
            for variable, value in zip(variables, new, strict=True):
                variable.value = value

        return type(initial)(*(variable.value for variable in variables)), store

    @nn.nowrap
    def settings(self) -> dict[str, Any]:
        """The keywords that all the functions take."""
        return {
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "dtype": self.dtype,
            "axis_name": self.axis_name,
            "axis_index_groups": self.axis_index_groups,
        }
