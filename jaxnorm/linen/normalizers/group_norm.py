"""`GroupNorm` of linen in either framework's convention."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm.linen.normalizers.base import channels_of, flax_layer
from jaxnorm.normalizers import checks
from jaxnorm.normalizers.conventions import DEFAULT, Name, convention_of, epsilon_of, groups_of


class GroupNorm(nn.GroupNorm):
    """`flax.linen.GroupNorm` with the defaults of Flax or of PyTorch.

    ::

        y = scale (x - mean) / sqrt(var + epsilon) + bias

    with mean and var (1 / N in both frameworks) of each sample and group of neighboring channels,
    in training and evaluation. Flax's defaults are 32 groups and an epsilon of 1e-6; PyTorch's
    epsilon is 1e-5, and the groups have to be given. In float32 at least, the variance about the
    mean (Flax's own default is not, see `BatchNorm`).

    Args:
        num_groups: how many groups. Default: the convention's. None if `group_size` is given.
        group_size: how many channels a group has, in place of `num_groups`.
        epsilon: what is added to the variance, in the units of x squared. Default: the
            convention's.
        use_fast_variance: default False.
        convention: (keyword) "flax" (default) or "torch".
        **kwargs: ``dtype``, ``param_dtype``, ``use_scale``, ``use_bias``, ``scale_init``,
            ``bias_init``, ``reduction_axes``, ``axis_name``, ``axis_index_groups``,
            ``force_float32_reductions`` as in Flax.

    Call: x [N, *space, C] and ``mask`` as in Flax; returns y in the shape of x.

    Raises:
        ValueError: for an unknown convention, an epsilon that is no such number, groups that do
            not divide the channels, fewer than two axes, another number of channels than the
            parameters have, and one value per group.

    Transformations: all of Flax's and JAX's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.GroupNorm(2, convention="torch")
        >>> x = jnp.array([[0.0, 2.0, 10.0, 20.0]])
        >>> layer.init_with_output(jax.random.key(0), x)[0].round(3)
        Array([[-1.,  1., -1.,  1.]], dtype=float32)

    References:
        Wu and He, arXiv 1803.08494, equations 1 to 7; the defaults are measured.
    """

    num_groups: Any = DEFAULT
    epsilon: Any = DEFAULT
    use_fast_variance: bool = False
    convention: Name = dataclasses.field(default="flax", kw_only=True)

    @nn.compact
    def __call__(self, x: Any, *, mask: jax.Array | None = None) -> Any:
        """Normalize x."""
        defaults, shape, groups = convention_of(self.convention), jnp.shape(x), None
        checks.check_rank(shape)
        known = channels_of(self)
        if known is not None:
            checks.check_channels(shape, len(shape) - 1, known)
        if self.group_size is None:
            groups = groups_of(self.num_groups, defaults.groups, shape[-1])
            values = math.prod(shape[1:]) // groups
            checks.check_values(shape, values, "group", "fewer groups")
        elif self.num_groups != DEFAULT:
            groups = self.num_groups
        epsilon = epsilon_of(self.epsilon, defaults.epsilon)
        layer = flax_layer(self, nn.GroupNorm, num_groups=groups, epsilon=epsilon)
        return layer(x, mask=mask)
