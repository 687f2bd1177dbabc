"""Mixture Normalization as a layer of Flax nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.normalizer import OverDevices
from jaxnorm.normalizers.mixture_norm import Mixture, check_knobs, initial_mixture, mixture_norm


class MixtureNorm(OverDevices):
    """As `jaxnorm.linen.normalizers.MixtureNorm`, as a module of nnx.

    Args:
        num_features: C.
        components: K.
        steps: of EM.
        floor: of a component's variance within EM.
        responsibility_gradient: whether gradients flow through the responsibilities.
        momentum, epsilon: as there.
        rngs: for the initial values.
        **kwargs: as `BatchRenorm`.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for shapes that do not fit, one value per channel in training, knobs out of
            range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.MixtureNorm(1, components=2, rngs=nnx.Rngs(0))
        >>> x = jnp.concatenate([jnp.linspace(-6, -4, 9), jnp.linspace(4, 6, 9)])[:, None]
        >>> y = layer(x)
        >>> round(float(y[:9].mean()), 4), round(float(y[:9].var()), 3)
        (0.0, 2.0)
    """

    def __init__(
        self,
        num_features: int,
        *,
        components: int = 2,
        steps: int = 5,
        floor: float = 1e-3,
        responsibility_gradient: bool = False,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        check_knobs(components, steps, floor, momentum, epsilon)
        super().__init__(num_features, momentum=momentum, epsilon=epsilon, rngs=rngs, **kwargs)
        self.make_stats(initial_mixture(components, num_features))
        self.steps, self.floor = steps, floor
        self.responsibility_gradient = responsibility_gradient

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        seeds: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize x; `seeds` [K, C] are the means where EM begins, in units of x."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        scale, bias = self.scale_and_bias()
        y, new = mixture_norm(
            x,
            self.read(Mixture),
            scale,
            bias,
            train=train,
            steps=self.steps,
            floor=self.floor,
            responsibility_gradient=self.responsibility_gradient,
            seeds=seeds,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if train:
            self.write(new)
        return self.finished(y, x, scale, bias)
