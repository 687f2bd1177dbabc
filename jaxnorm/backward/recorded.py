"""The statistics of a batch, handed over as the gradient with respect to those before it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.backward.sharding import varying_alike
from jaxnorm.branches import either
from jaxnorm.rule import is_due
from jaxnorm.statistics import tracked
from jaxnorm.statistics.batch import Batch
from jaxnorm.statistics.tracked import Statistics

#: What a batch does not tell.
_STATIC = ("kernel_path", "bias_path", "interval", "remembers", "smoothing", "unit")


def batch_statistics(batch: Batch, statistics: Statistics, position: Any) -> Statistics:
    """The batch's, about the center of those before, and in their types (see `handed_on`)."""
    # (What is the same in every batch, a knob, comes from every device as the sums do.)
    found, _ = varying_alike((tracked.of_batch(batch, statistics, position), statistics))
    found = found.packed() if statistics.is_packed else found
    found = found.replace(**{name: getattr(statistics, name) for name in _STATIC})
    unit = statistics.unit
    return jax.tree.map(
        lambda new, old: (new if unit == 1 else unit * new).astype(old.dtype), found, statistics
    )


def when_due(take: Callable[..., Statistics], statistics: Statistics, *args: Any) -> Statistics:
    """take(statistics, *args), or zeros in a step without (`Rule.statistics_every`)."""
    if statistics.interval == 1:
        return take(statistics, *args)
    # Without usable ones the layer makes no step, so it takes whatever comes.
    age = statistics.age.astype(jnp.int32)
    due = (statistics.calls == 0) | is_due(statistics.steps, age, statistics.interval)
    nothing = jax.tree.map(jnp.zeros_like, statistics)
    return either(due, take, lambda *_: nothing, statistics, *args)
