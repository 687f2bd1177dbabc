"""The statistics of a batch, handed over as the gradient with respect to those before it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.rule import WARM_UP
from jaxnorm.statistics import tracked
from jaxnorm.statistics.batch import Batch
from jaxnorm.statistics.tracked import Statistics


def batch_statistics(batch: Batch, statistics: Statistics) -> Statistics:
    """The batch's, about the center of those before, and in their types."""
    found = tracked.of_batch(batch, statistics)
    found = found.replace(
        **{name: getattr(statistics, name) for name in ("kernel_path", "bias_path")}
    )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), found, statistics)


def when_due(
    every: int, take: Callable[..., Statistics], statistics: Statistics, *args: Any
) -> Statistics:
    """take(statistics, *args), or zeros in a step without (`Rule.statistics_every`)."""
    if every == 1:
        return take(statistics, *args)
    steps = statistics.steps
    now = (steps < WARM_UP) | (steps % every == 0)
    nothing = jax.tree.map(jnp.zeros_like, statistics)
    return lax.cond(now, take, lambda *_: nothing, statistics, *args)
