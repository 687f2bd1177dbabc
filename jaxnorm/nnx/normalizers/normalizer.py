"""What the normalizers with running statistics share: Flax's arguments, variables and dtypes."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype
from jax.nn import initializers

from jaxnorm.normalizers.channels import check_channels

_State = TypeVar("_State", bound=NamedTuple)


class Normalizer(nnx.Module):
    """The first arguments of `flax.nnx.BatchNorm`, and what a call does around the function.

    Neither `use_fast_variance` nor `promote_dtype` is among the others: the variance is never the
    fast one, and statistics are never below float32.
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
    ) -> None:
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Used by `flax.nnx.view`, as of Flax's BatchNorm."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def trains(self, use_running_average: bool | None) -> bool:
        """Whether the statistics are those of the batch; what the call says goes first."""
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                "use_running_average: got None, expected True or False in the constructor or in "
                "the call; or use model.train() and model.eval()"
            )
        return not use_running_average

    def channels_last(self, x: jax.Array) -> jax.Array:
        """The input with the channels on the last axis."""
        check_channels(x, self.num_features, self.axis)
        return jnp.moveaxis(x, self.axis, -1)

    def parameter(self, init: Callable[..., Any], shape: tuple[int, ...], rngs: Any) -> nnx.Param:
        """A new parameter."""
        return nnx.Param(init(rngs.params(), shape, self.param_dtype))

    def make_stats(self, initial: NamedTuple, kind: type[nnx.Variable] = nnx.BatchStat) -> None:
        """The variables for such a tuple, under its names."""
        for name, value in initial._asdict().items():
            setattr(self, name, kind(value))

    def read(self, kind: type[_State]) -> _State:
        """The tuple of the variables."""
        return kind._make(getattr(self, name)[...] for name in kind._fields)

    def write(self, new: NamedTuple) -> None:
        """The tuple into the variables."""
        for name, value in new._asdict().items():
            getattr(self, name)[...] = value

    def finished(self, y: jax.Array, *inputs: Any) -> jax.Array:
        """The output with the channels where they were, in Flax's dtype for these inputs."""
        dtype = canonicalize_dtype(*(a for a in inputs if a is not None), dtype=self.dtype)
        return jnp.moveaxis(y.astype(dtype), -1, self.axis)


class Affine(Normalizer):
    """Those with a scale and a bias per channel."""

    def __init__(
        self,
        num_features: int,
        *,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., Any] = initializers.zeros,
        scale_init: Callable[..., Any] = initializers.ones,
        rngs: Any,
        **arguments: Any,
    ) -> None:
        super().__init__(num_features, **arguments)
        self.use_bias = use_bias
        self.use_scale = use_scale
        shape = (num_features,)
        self.scale = self.parameter(scale_init, shape, rngs) if use_scale else nnx.data(None)
        self.bias = self.parameter(bias_init, shape, rngs) if use_bias else nnx.data(None)

    def scale_and_bias(self) -> tuple[Any, Any]:
        """The parameters, of those that there are."""
        return (
            None if self.scale is None else self.scale[...],
            None if self.bias is None else self.bias[...],
        )
