"""A proximal regularizer for small batches, as an Optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnorm.normalizers.refusals import check_count, check_knob
from jaxnorm.precision import at_least_float32


class ProximalState(NamedTuple):
    """The anchor of the parameters.

    Attributes:
        count: steps so far.
        anchor: a tree like the params, in at least float32.
    """

    count: jax.Array
    anchor: Any


def proximal(
    rho: float, every: int = 100, decay: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """A proximal term: parameters are held near where they lately were.

        loss + rho/2 |theta - anchor|^2:    g <- g + rho (theta - anchor)
        anchor <- decay anchor + (1 - decay) theta         before every `every`-th step

    Gradients of small batches are noisy; near the anchor their noise averages out over the steps
    that it stands for, and the anchor takes what is left. Before an optimizer:
    ``optax.chain(jaxnorm.proximal(0.1), optax.sgd(0.1))``. With SGD of rate r a step shrinks the
    distance to the anchor by 1 - r rho, so r rho should be well below 1. Behind an optimizer that
    divides by gradients (Adam) the term counts relative to them.

    In neuron coordinates the term stands outside, where the parameters are what they are:
    ``optax.chain(jaxnorm.proximal(0.1), jaxnorm.in_neuron_coordinates(optax.adam(0.01)))``.

    At first the anchor is where the parameters are. ``every=1, decay=0`` would be nothing at all
    and is refused.

    Args:
        rho: >= 0, in units of the loss per squared unit of a parameter. 0 changes nothing.
        every: how many steps the anchor stands, an int >= 1, default 100.
        decay: the weight of the old anchor, in [0, 1), default 0: it moves to the parameters. With
            ``every=1`` it is an exponential average of them, over about 1 / (1 - decay) steps.

    Returns:
        A transformation that needs the params in ``update``. Its state holds one array in at least
        float32 like each parameter, averaged in that precision.

    Raises:
        TypeError: for a knob that is no number.
        ValueError: for a knob out of range; at ``update``, for params that are not given.

    Transformations: any. Dtypes: updates keep theirs.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> tx = optax.chain(jaxnorm.proximal(0.5), optax.sgd(1.0))
        >>> params = jnp.array([0.0])
        >>> state = tx.init(params)
        >>> for _ in range(3):  # a slope of -1: without it 1, 2, 3
        ...     updates, state = tx.update(jnp.array([-1.0]), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(params.tolist())
        [1.0]
        [1.5]
        [1.75]

    References:
        "A proximal regularizer for small batches" is named by this project's sources as an
        alternative to BatchNorm; which paper that is was not found, so this is the least that
        deserves the name, not a published method. Near, from memory: the proximal subproblems of
        Li, Zhang, Chen, Smola, "Efficient mini-batch training for stochastic optimization", KDD
        2014, with the last iterate as the anchor; the elastic averaging of Zhang, Choromanska,
        LeCun, NeurIPS 2015; Lookahead, Zhang et al., NeurIPS 2019.
    """
    check_proximal(rho, every, decay)

    def init(params: Any) -> ProximalState:
        return ProximalState(jnp.zeros([], jnp.int32), jax.tree.map(_wide, params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ProximalState]:
        del extra_args
        if params is None:
            raise ValueError(
                "params: got None, expected the parameters; call tx.update(grads, state, params)"
            )
        due = state.count % every == 0
        anchor = jax.tree.map(
            lambda old, now: jnp.where(due, decay * old + (1 - decay) * _wide(now), old),
            state.anchor,
            params,
        )

        def with_term(update: jax.Array, now: jax.Array, near: jax.Array) -> jax.Array:
            return (_wide(update) + rho * (_wide(now) - near)).astype(update.dtype)

        updates = jax.tree.map(with_term, updates, params, anchor)
        return updates, ProximalState(jnp.asarray(optax.safe_increment(state.count)), anchor)

    return optax.GradientTransformationExtraArgs(init, update)


def check_proximal(rho: float, every: int, decay: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_knob("rho", rho, "a number >= 0", lambda value: value >= 0)
    check_count("every", every, 1)
    check_knob("decay", decay, "a number in [0, 1)", lambda value: 0 <= value < 1)
    if every == 1 and decay == 0:
        raise ValueError(
            "every: got 1 with decay 0, expected more steps or a decay > 0; an anchor that moves "
            "to the parameters before every step holds nothing"
        )


def _wide(leaf: jax.Array) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(at_least_float32(leaf.dtype))
