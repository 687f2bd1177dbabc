"""`skipped_steps`: which layers made no step, and how often."""

from typing import Any

import jax.numpy as jnp

from jaxnorm.optim.layers import statistics_in


def skipped_steps(neuron_stats: Any) -> dict[str, int]:
    """In how many steps each layer made none, because its statistics were of no use.

    That is, of no sample so far (a head that was not used, an expert without a token), of a single
    one, which is its own mean, without a `decay` to remember others by, or of a first batch in
    parts (devices, micro-batches, calls of the layer) with an input so far from 0 (16 deviations;
    in float64 64) that each part was summed about its own mean. Such a layer keeps its
    parameters, but for weight decay; where it has older statistics it steps with those, and nothing
    is counted.

    Args:
        neuron_stats: the statistics of a model, as `update_statistics` returns them.

    Returns:
        {layer: steps}; of a stack of layers the most that one of them has.

    Raises:
        ValueError: for a tree without statistics.

    Transformations: none; it waits for the device.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer, x = jaxnorm.linen.Dense(3, gate=None), jnp.ones((1, 5))
        >>> variables = layer.init(jax.random.key(0), x)
        >>> stats = jaxnorm.linen.init_statistics(layer, variables, x)
        >>> loss = lambda stats: layer.apply({**variables, "neuron_stats": stats}, x).sum()
        >>> stats = jaxnorm.update_statistics(stats, jax.grad(loss)(stats))
        >>> jaxnorm.skipped_steps({"Dense_0": stats})  # a single sample
        {'Dense_0': 1}
    """
    found = statistics_in(neuron_stats)
    if not found:
        raise ValueError(
            "neuron_stats: got no layer, expected at least one; make them with init_statistics"
        )
    return {"/".join(path): int(jnp.max(each.skipped)) for path, each in found.items()}
