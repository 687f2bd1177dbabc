"""The statistics of nnx layers: `NeuronStats`, and how a layer finds them."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm.conversion.trace import Marks, is_turned
from jaxnorm.statistics.tracked import Statistics


class NeuronStats(nnx.Variable):
    """A layer's `jaxnorm.statistics.tracked.Statistics`, made by `init_statistics`.

    Raises:
        Nothing of its own.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Linear(5, 3, gate="relu", rngs=nnx.Rngs(0))
        >>> jaxnorm.nnx.init_statistics(layer, jnp.ones((2, 5)))
        >>> params, statistics = nnx.state(layer, nnx.Param, jaxnorm.nnx.NeuronStats)
        >>> sorted(params), list(statistics)
        (['bias', 'kernel'], ['neuron_stats'])
    """


PARAMS_AND_STATISTICS = nnx.Any(nnx.Param, NeuronStats)
"""What to differentiate by: ``argnums=nnx.DiffState(0, PARAMS_AND_STATISTICS)``."""


class Seen(NamedTuple):
    """A layer as it is called in `init_statistics`.

    Attributes:
        record: what it would record.
        kernel: the shape of its kernel.
        turned: whether its kernel is mapped along another axis than the first.
    """

    record: Statistics
    kernel: tuple[int, ...]
    turned: bool


class _Local(threading.local):
    """The layers of a traced copy by path, in each thread, and their kernels."""

    seen: dict[str, Seen] | None = None
    marks: Marks = Marks()


LOCAL = _Local()

#: In the key of every `jax.jit` cache: what `nnx.jit` has traced before must be seen again.
watching = jax.make_user_context(default_value=None)


def statistics_of(layer: Any, empty: Callable[[], Statistics]) -> Statistics | None:
    """A layer's statistics, or None."""
    if LOCAL.seen is not None:
        if hasattr(layer, "_path"):
            kernel = layer.kernel[...]
            LOCAL.marks.kernel(layer._path, kernel)
            seen = Seen(jax.eval_shape(empty), jnp.shape(kernel), is_turned(kernel))
            LOCAL.seen.setdefault(layer._path, seen)
        return None
    variable = vars(layer).get("neuron_stats")
    found = None if variable is None else variable.get_value()
    if isinstance(found, Statistics) and found.stack:
        raise ValueError(
            "neuron_stats: got those of a stack of layers in one of them, expected them on the "
            "axes of the parameters; where nnx.Param is mapped use "
            "nnx.StateAxes({jaxnorm.nnx.PARAMS_AND_STATISTICS: 0, ...: None})"
        )
    return found
