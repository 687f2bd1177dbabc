"""`AttentiveNorm` of nnx."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.nn import initializers

from jaxnorm.nnx.normalizers.normalizer import Normalizer
from jaxnorm.normalizers.attentive_norm import (
    AttentiveParams,
    AttentiveState,
    around_one,
    attentive_norm,
    initial_attentive_state,
)
from jaxnorm.normalizers.channels import check_knob


class AttentiveNorm(Normalizer):
    """As `jaxnorm.linen.normalizers.AttentiveNorm`, which has the text; see `BatchRenorm`.

    Args:
        num_features: C.
        mixtures, momentum, epsilon, bias_init, scale_init, projection_init, attention, unbiased,
            convention, axis_name, axis_index_groups: as there.
        rngs: for the initial values.
        **kwargs: use_running_average, axis, dtype, param_dtype: as there.

    Raises:
        TypeError, ValueError: as there; for an input of other than C channels.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.AttentiveNorm(3, mixtures=5, rngs=nnx.Rngs(0))
        >>> y = layer(jax.random.normal(jax.random.key(0), (4, 8, 8, 3)))
        >>> y.shape, layer.scale.shape
        ((4, 8, 8, 3), (5, 3))
    """

    def __init__(
        self,
        num_features: int,
        *,
        mixtures: int = 10,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        bias_init: Callable[..., Any] = initializers.normal(0.1),
        scale_init: Callable[..., Any] = around_one,
        projection_init: Callable[..., Any] = initializers.variance_scaling(
            1.0, "fan_in", "normal"
        ),
        attention: str = "hard_sigmoid",
        unbiased: bool = False,
        convention: str = "flax",
        axis_name: Any = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, momentum=momentum, epsilon=epsilon, **kwargs)
        check_knob("mixtures", mixtures, 1)
        self.mixtures = mixtures
        self.attention = attention
        self.unbiased = unbiased
        self.convention = convention
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.scale = self.parameter(scale_init, (mixtures, num_features), rngs)
        self.bias = self.parameter(bias_init, (mixtures, num_features), rngs)
        self.projection = self.parameter(projection_init, (num_features, mixtures), rngs)
        self.attention_scale = self.parameter(initializers.ones, (mixtures,), rngs)
        self.attention_bias = self.parameter(initializers.zeros, (mixtures,), rngs)
        self.make_stats(initial_attentive_state(num_features, mixtures))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        params = self.read(AttentiveParams)
        y, new = attentive_norm(
            x,
            self.read(AttentiveState),
            params,
            train=train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            attention=self.attention,
            unbiased=self.unbiased,
            convention=self.convention,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if train:
            self.write(new)
        return self.finished(y, x, *params)
