"""What the normalizers with running statistics share: Flax's fields, variables and dtypes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.nn import initializers

from jaxnorm.normalizers.channels import check_channels


class Normalizer(nn.Module):
    """The first fields of `flax.linen.BatchNorm`, and what a call does around the function.

    Neither `use_fast_variance` nor `force_float32_reductions` is among the others: the variance is
    never the fast one, and statistics are never below float32.
    """

    use_running_average: bool | None = None
    axis: int = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.nowrap
    def trains(self, use_running_average: bool | None) -> bool:
        """Whether the statistics are those of the batch.

        Not in ``init``, whose batch may be a single sample, and over which there is no axis.
        """
        evaluate = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        return not (evaluate or self.is_initializing())

    @nn.nowrap
    def channels_last(self, x: jax.Array) -> jax.Array:
        """The input with the channels on the last axis."""
        check_channels(x, axis=self.axis)
        return jnp.moveaxis(x, self.axis, -1)

    @nn.nowrap
    def stats(self, initial: NamedTuple) -> tuple[Any, Callable[[NamedTuple], None]]:
        """The collection ``batch_stats`` as such a tuple, and what writes it."""
        variables = {
            name: self.variable("batch_stats", name, lambda value=value: value)
            for name, value in initial._asdict().items()
        }

        def write(new):
            for name, value in new._asdict().items():
                variables[name].value = value

        return type(initial)._make(each.value for each in variables.values()), write

    @nn.nowrap
    def finished(self, y: jax.Array, *inputs: Any) -> jax.Array:
        """The output with the channels where they were, in Flax's dtype for these inputs."""
        dtype = canonicalize_dtype(*(a for a in inputs if a is not None), dtype=self.dtype)
        return jnp.moveaxis(y.astype(dtype), -1, self.axis)


class Affine(Normalizer):
    """Those with a scale and a bias per channel."""

    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] = initializers.zeros
    scale_init: Callable[..., Any] = initializers.ones

    @nn.nowrap
    def scale_and_bias(self, channels: int) -> tuple[Any, Any]:
        """The parameters, of those that there are."""
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (channels,), self.param_dtype)
        return scale, bias
