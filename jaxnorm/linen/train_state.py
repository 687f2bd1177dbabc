"""A Flax `TrainState` that carries the statistics."""

from collections.abc import Mapping
from typing import Any, Self

import optax
from flax import struct
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from jaxnorm.optim.layers import check_wrapped
from jaxnorm.optim.update_statistics import update_statistics


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` with ``neuron_stats`` and ``batch_stats``.

    Attributes:
        neuron_stats: the statistics of all layers, from `init_statistics`.
        batch_stats: the collection of `flax.linen.BatchNorm`, or None.

    `create` takes both beside ``apply_fn``, ``params`` and ``tx``, which must be made by
    `jaxnorm.in_neuron_coordinates` (or contain it). Subclasses add fields as to Flax's, with
    defaults or without.

    Raises:
        ValueError: without statistics; for an optimizer that would ignore them; and what
            `in_neuron_coordinates` raises.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> model = jaxnorm.linen.Dense(3, gate=None)
        >>> x, y = jnp.eye(5), jnp.ones((5, 3))
        >>> variables = model.init(jax.random.key(0), x)
        >>> state = jaxnorm.linen.TrainState.create(
        ...     apply_fn=model.apply,
        ...     params=variables["params"],
        ...     neuron_stats=jaxnorm.linen.init_statistics(model, variables, x),
        ...     tx=jaxnorm.in_neuron_coordinates(optax.adam(0.1)),
        ... )
        >>> def loss(params, neuron_stats):
        ...     variables = {"params": params, "neuron_stats": neuron_stats}
        ...     return jnp.mean((state.apply_fn(variables, x) - y) ** 2)
        >>> before = loss(state.params, state.neuron_stats)
        >>> grads, stats = jax.grad(loss, argnums=(0, 1))(state.params, state.neuron_stats)
        >>> state = state.apply_gradients(grads=grads, neuron_stats=stats)
        >>> bool(loss(state.params, state.neuron_stats) < before)
        True
    """

    neuron_stats: Any
    # By keyword, and not as an attribute of the class: fields without a default may follow.
    batch_stats: Any = struct.field(kw_only=True, default_factory=lambda: None)

    @classmethod
    def create(cls, *, apply_fn: Any, params: Any, tx: Any, **kwargs: Any) -> Self:
        """A new state with ``step=0``; see the class."""
        if kwargs.get("neuron_stats") is None:
            raise ValueError(
                "neuron_stats: got None, expected the statistics of the layers; make them with "
                "jaxnorm.linen.init_statistics"
            )
        state = super().create(apply_fn=apply_fn, params=params, tx=tx, **kwargs)
        check_wrapped(state.opt_state)
        return state

    def apply_gradients(self, *, grads: Any, neuron_stats: Any = None, **kwargs: Any) -> Any:
        """One step.

        Args:
            grads: the gradient with respect to the parameters.
            neuron_stats: the gradient with respect to the statistics.
            **kwargs: further fields to replace, ``batch_stats`` for example.
        """
        merged = update_statistics(self.neuron_stats, neuron_stats)
        params, rest = self.params, {}
        if isinstance(grads, Mapping) and OVERWRITE_WITH_GRADIENT in grads:  # as Flax's
            rest = {OVERWRITE_WITH_GRADIENT: grads[OVERWRITE_WITH_GRADIENT]}
            params, grads = params["params"], grads["params"]
        tx: Any = self.tx
        updates, opt_state = tx.update(grads, self.opt_state, params, neuron_stats=merged)
        params = optax.apply_updates(params, updates)
        return self.replace(
            step=self.step + 1,
            params={"params": params, **rest} if rest else params,
            opt_state=opt_state,
            neuron_stats=merged,
            **kwargs,
        )
