"""`WeightNorm` of nnx, which learns, and equal to PyTorch's where asked for."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxnorm.normalizers.conventions import DEFAULT, Name, epsilon_of
from jaxnorm.normalizers.weight_norm import norm, start_of, weight_norm


class WeightNorm(nnx.WeightNorm):
    """`flax.nnx.WeightNorm` with parameters that learn. As `WeightNorm` of linen.

    In Flax 0.12.8 the scales are arrays that are no `nnx.Param`, so that no optimizer sees them,
    and a call writes the normalized kernel over v; here both are parameters, and a call changes
    neither. The scale of ``layer_instance.kernel`` is ``scales["kernel/scale"]``.

    Args:
        layer_instance: the layer.
        feature_axes: as in linen.
        use_scale: whether there is a g; default True.
        scale_init: as in linen.
        epsilon: as in linen.
        variable_filter: which parameters; default ``nnx.PathContains("kernel")``.
        convention: "flax" (default) or "torch".
        **kwargs: the other arguments of `flax.nnx.WeightNorm`, ``rngs`` among them.

    Raises:
        ValueError: as in linen.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer, rngs = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Rngs(1)
        >>> normed = jaxnorm.nnx.normalizers.WeightNorm(layer, convention="torch", rngs=rngs)
        >>> x = jnp.ones((1, 2))
        >>> bool(jnp.allclose(normed(x), layer(x)))
        True
    """

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: Any = -1,
        use_scale: bool = True,
        scale_init: Any = DEFAULT,
        epsilon: Any = DEFAULT,
        param_dtype: Any = jnp.float32,
        convention: Name = "flax",
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        default, as_it_was = start_of(convention)
        super().__init__(
            layer_instance,
            feature_axes=feature_axes,
            use_scale=False,
            epsilon=epsilon_of(epsilon, default),  # pyright: ignore[reportArgumentType]
            param_dtype=param_dtype,
            rngs=rngs,
            **kwargs,
        )
        self.convention, self.use_scale = convention, use_scale
        scales = {}
        for name, v in self._meant().items() if use_scale else ():
            g = norm(v[...], feature_axes).astype(param_dtype)
            if scale_init != DEFAULT:
                g = scale_init(rngs.params(), g.shape, param_dtype)
            elif not as_it_was:
                g = jnp.ones_like(g)
            scales[name] = nnx.Param(g)
        self.scales = nnx.data(scales)

    def _meant(self) -> dict[str, Any]:
        """The parameters of the layer that are normalized, by the names of their scales."""
        return {
            "/".join(map(str, (*path, "scale"))): node
            for path, node in nnx.iter_graph(self.layer_instance)
            if isinstance(node, nnx.Param) and self.variable_filter(path, node)
        }

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on normalized weights."""
        parameters = {name: (each, each[...]) for name, each in self._meant().items()}
        try:
            for name, (parameter, v) in parameters.items():
                g = self.scales[name][...] if self.use_scale else None  # type: ignore[index]
                w = weight_norm(
                    v, g, None if self.feature_axes == () else self.feature_axes, self.epsilon
                )
                parameter.set_value(w if self.dtype is None else w.astype(self.dtype))
            return self.layer_instance(x, *args, **kwargs)  # type: ignore[operator]
        finally:
            for parameter, v in parameters.values():
                parameter.set_value(v)
