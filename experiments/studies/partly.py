"""The rule in some kinds of layers of a network only."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxnorm
from experiments.studies.tasks import MOMENTUM
from experiments.training.method import make_optimizer
from experiments.training.trainer import Trainer


def partly(optimizer: str, kinds: Mapping[str, int]) -> Callable[[Any], Any]:
    """An optimizer in the neurons' coordinates of some layers, and in the parameters of the others.

    Both steps are made, and each layer takes one of them: SGD and Adam treat every entry by itself.
    So which layers it is can be traced, and one program trains them all.

    Args:
        optimizer: its name for `make_optimizer`.
        kinds: the number of each layer's kind.

    Returns:
        What makes it from [1 + P] numbers: the rate, and for each kind 1 or 0. (From a single one
        it makes one that can only be asked for its state.)
    """

    def make(numbers: Any) -> optax.GradientTransformationExtraArgs:
        rate, *shares = jnp.atleast_1d(jnp.asarray(numbers))
        inner = make_optimizer(optimizer, MOMENTUM, rate)
        inside, outside = (
            jaxnorm.in_neuron_coordinates(inner),
            optax.with_extra_args_support(inner),
        )

        def init(params: Any) -> Any:
            return inside.init(params), outside.init(params)

        def update(updates: Any, state: Any, params: Any = None, **statistics: Any) -> Any:
            first, one = inside.update(updates, state[0], params, **statistics)
            second, other = outside.update(updates, state[1], params)

            def chosen(path: Any, inner: jax.Array, outer: jax.Array) -> jax.Array:
                if path[0].key not in kinds:
                    return outer
                return jnp.where(shares[kinds[path[0].key]] > 0, inner, outer)

            return jax.tree_util.tree_map_with_path(chosen, first, second), (one, other)

        return optax.GradientTransformationExtraArgs(init, update)

    return make


class InTurn(Trainer):
    """A trainer that makes one run after the other.

    Under `jax.vmap` a step without statistics costs as much as one with; not under `jax.lax.map`.
    """

    def __post_init__(self) -> None:
        """As that of every trainer."""
        super().__post_init__()
        advance = _in_turn(self._advance, (0, None, None, 0, None))
        advance = _in_turn(advance, (0, 0, 0, None, None))
        self._advance_all = jax.jit(advance, donate_argnums=0)


def _in_turn(function: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """`jax.vmap` of a function, its calls one after the other."""

    def mapped(*arguments: Any) -> Any:
        over = [one for one, axis in zip(arguments, axes, strict=True) if axis == 0]

        def call(each: Any) -> Any:
            rest = iter(each)
            pairs = zip(arguments, axes, strict=True)
            return function(*(one if axis is None else next(rest) for one, axis in pairs))

        return jax.lax.map(call, over)

    return mapped
