"""`WeightNorm` of linen, equal to PyTorch's where asked for."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from jaxnorm.normalizers.conventions import DEFAULT, Name, epsilon_of
from jaxnorm.normalizers.weight_norm import norm, start_of, weight_norm


class WeightNorm(nn.WeightNorm):
    """`flax.linen.WeightNorm`, in PyTorch's convention equal to its ``weight_norm``.

    ::

        w = g v / sqrt(|v|^2 + epsilon)

    in place of the kernel of a layer, in training and evaluation; v is the layer's own parameter
    and g [O] the scale of this module, |v| over all axes but that of the neurons. Flax starts with
    g = 1, so that wrapping a layer changes what it computes, and adds 1e-12; PyTorch starts with
    g = |v|, so that w = v, and adds nothing (a neuron of zeros is NaN there).

    PyTorch's ``dim=0`` is ``feature_axes=-1`` for dense layers and convolutions, and for a
    transposed convolution -2: there dimension 0 is that of the *inputs*. ``dim=None`` is
    ``feature_axes=None``. `jaxnorm.from_torch` and `to_torch` know both parameters
    (``parametrizations.weight.original0`` is g, ``original1`` v), under the names of the layer.

    Args:
        layer_instance: the layer.
        epsilon: added to |v|^2, in the units of the weight squared. Default: the convention's.
        scale_init: default: the convention's.
        feature_axes: the axes of which every entry has a norm of its own; default -1.
        variable_filter: which parameters, by parts of their path; default ``{"kernel"}``.
        convention: (keyword) "flax" (default) or "torch".
        **kwargs: ``dtype``, ``param_dtype``, ``use_scale`` as in Flax.

    Raises:
        ValueError: for an unknown convention and an epsilon that is no such number.

    Transformations: all of Flax's and JAX's. `jaxnorm.linen.neuronwise` leaves the layer alone.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.WeightNorm(nn.Dense(3), convention="torch")
        >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 2)))
        >>> kernel = variables["params"]["layer_instance"]["kernel"]
        >>> bool(jnp.allclose(y, jnp.ones((1, 2)) @ kernel))
        True

    References:
        Salimans and Kingma, arXiv 1602.07868, equation 2.
    """

    epsilon: Any = DEFAULT
    scale_init: Any = DEFAULT
    convention: Name = dataclasses.field(default="flax", kw_only=True)

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on normalized weights."""
        return nn.map_variables(
            lambda layer: layer(*args, **kwargs),
            trans_in_fn=lambda tree: jax.tree_util.tree_map_with_path(self._normalized, tree),
            init=self.is_initializing(),
        )(self.layer_instance)

    def _normalized(self, path: Any, v: Any) -> Any:
        """A parameter of the layer, normalized if it is meant."""
        inner = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        name = f"{self.layer_instance.name}/{inner}"
        if self.variable_filter and not any(part in name for part in self.variable_filter):
            return v
        default, as_it_was = start_of(self.convention)
        epsilon = epsilon_of(self.epsilon, default)
        g = None
        if self.use_scale:
            length = norm(v, self.feature_axes)
            init = nn.initializers.ones if self.scale_init == DEFAULT else self.scale_init
            if self.scale_init == DEFAULT and as_it_was:
                init = lambda key, shape, dtype: length.astype(dtype)  # noqa: E731
            g = self.param(f"{name}/scale", init, length.shape, self.param_dtype)
        w = weight_norm(v, g, self.feature_axes, epsilon)
        return w if self.dtype is None else w.astype(self.dtype)
