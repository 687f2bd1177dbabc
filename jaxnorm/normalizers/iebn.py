"""Instance Enhancement Batch Normalization: each sample's mean weighs its normalized channels."""

from typing import Any

import jax

from jaxnorm.normalizers.batch_stats import CONVENTIONS, BatchStats, normalized
from jaxnorm.normalizers.channels import (
    check_channels,
    check_choice,
    check_knob,
    computed,
    scaled,
    space_moments,
)


def instance_enhancement_batch_norm(
    x: jax.Array,
    state: BatchStats,
    scale: jax.Array | None,
    bias: jax.Array | None,
    attention_scale: jax.Array,
    attention_bias: jax.Array,
    *,
    train: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    convention: str = "flax",
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, BatchStats]:
    """The function of `jaxnorm.linen.normalizers.InstanceEnhancementBatchNorm`; see there.

    Returns:
        y [N, *space, C], float32 or wider, and the new state: the old one unless `train`.

    Raises:
        TypeError, ValueError: as the layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers import initial_batch_stats, instance_enhancement_batch_norm
        >>> x, attention = jnp.array([[1.0], [3.0]]), (jnp.zeros(1), jnp.zeros(1))
        >>> y, state = instance_enhancement_batch_norm(
        ...     x, initial_batch_stats(1), None, None, *attention, train=True
        ... )
        >>> print(y.ravel().round(2), state.mean)  # half of (-1, 1): sigmoid(0) = 1/2
        [-0.5  0.5] [0.2]
    """
    check_channels(x, state.mean.shape[0])
    check_knob("momentum", momentum, 0, 1)
    check_knob("epsilon", epsilon, 0)
    check_choice("convention", convention, CONVENTIONS)
    x = computed(x)
    pooled, _, _ = space_moments(x)
    attention = jax.nn.sigmoid(scaled(pooled, attention_scale, attention_bias))
    y, new = normalized(
        x,
        state,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        convention=convention,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )
    return scaled(y * attention, scale, bias), new
