"""`OnlineNorm` of nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.normalizer import Affine
from jaxnorm.normalizers.online_norm import (
    OnlineControl,
    OnlineState,
    initial_online_control,
    initial_online_state,
    online_norm,
)


class BackwardStat(nnx.Variable):
    """A state of the backward pass: the gradient with respect to it is what a step adds to it.

    Raises:
        Nothing of its own.

    Example:
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.OnlineNorm(3, rngs=nnx.Rngs(0))
        >>> list(nnx.state(layer, jaxnorm.nnx.normalizers.BackwardStat))
        ['gradient', 'projection']
    """


class OnlineNorm(Affine):
    """As `jaxnorm.linen.normalizers.OnlineNorm`, which has the text; see `BatchRenorm`.

    U and V are `BackwardStat` variables, gradient and projection. Differentiate by them beside the
    parameters, and give what comes back to `add_backward_stats`, as below.

    Args:
        num_features: C.
        momentum, epsilon, backward_momentum, guard, clamp: as there.
        rngs: for the initial values.
        **kwargs: as `BatchRenorm`.

    Raises:
        TypeError, ValueError: as there; for an input of other than C channels.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> from jaxnorm.nnx.normalizers import BackwardStat, OnlineNorm, add_backward_stats
        >>> layer, x = OnlineNorm(3, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (4, 3))
        >>> optimizer = nnx.Optimizer(layer, optax.sgd(0.1), wrt=nnx.Param)
        >>> by = nnx.DiffState(0, nnx.Any(nnx.Param, BackwardStat))
        >>> grads = nnx.grad(lambda layer: jnp.sum(layer(x) ** 2), argnums=by)(layer)
        >>> grads, added = nnx.split_state(grads, nnx.Param, BackwardStat)
        >>> add_backward_stats(layer, added)
        >>> _ = optimizer.update(layer, grads)
        >>> layer.projection.shape, bool((layer.projection[...] > 0).all())
        ((3,), True)
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.999,
        epsilon: float = 1e-5,
        backward_momentum: float = 0.99,
        guard: str | None = "activation_clamping",
        clamp: float = 5.0,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, momentum=momentum, epsilon=epsilon, rngs=rngs, **kwargs)
        self.backward_momentum = backward_momentum
        self.guard = guard
        self.clamp = clamp
        self.make_stats(initial_online_state(num_features))
        self.make_stats(initial_online_control(num_features), BackwardStat)

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        scale, bias = self.scale_and_bias()
        y, new = online_norm(
            x,
            self.read(OnlineState),
            self.read(OnlineControl),
            scale,
            bias,
            train=train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            backward_momentum=self.backward_momentum,
            guard=self.guard,
            clamp=self.clamp,
        )
        if train:
            self.write(new)
        return self.finished(y, x, scale, bias)


def add_backward_stats(model: nnx.Module, added: Any) -> None:
    """Add what a step's gradients have for the `BackwardStat` variables of a model, in place.

    Args:
        model: with layers such as `OnlineNorm`.
        added: the part of the gradients that is theirs, of `flax.nnx.split_state`.

    Raises:
        ValueError: if it is not of all of the model's.

    Example:
        See `OnlineNorm`.
    """
    old = nnx.state(model, BackwardStat)
    if jax.tree.structure(old) != jax.tree.structure(added):
        raise ValueError(
            f"added: got {list(nnx.to_flat_state(added))}, expected the BackwardStat variables "
            "of the model; differentiate by them: "
            "argnums=nnx.DiffState(0, nnx.Any(nnx.Param, BackwardStat))"
        )
    nnx.update(model, jax.tree.map(lambda old, added: old + added, old, added))
