"""`Dense`, `DenseGeneral` and `Einsum` of linen, with the rule in their backward pass."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxnorm import checks
from jaxnorm.backward.linear_operation import linear_operation
from jaxnorm.functional import neuronwise_einsum
from jaxnorm.linen.base import Neuronwise, product_of
from jaxnorm.operations.einsum import dense_general, parse
from jaxnorm.operations.linear import dense


class Dense(Neuronwise, nn.Dense):
    """`flax.linen.Dense` with the neuron-wise rule; see `jaxnorm.neuronwise_dense`.

    Forward (exact):      z [..., O] = x [..., I] kernel + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer with its name, its parameters (``kernel`` [I, O], ``bias`` [O]),
    its initial values and every one of its arguments: checkpoints move both ways. `init` makes
    Flax's variables and no more; the statistics are a collection of their own, ``neuron_stats``,
    that `init_statistics` makes. Without it the layer trains as Flax's.

    Attributes:
        gate: (required, keyword) the activation that follows the layer; its derivative gates the
            neuron: it says on which samples, or how much, the neuron learns. A name of `jax.nn`
            (``"relu"``), an elementwise callable, or None if none follows. It is not applied. With
            `jaxnorm.DEFERRED` the layer returns (z, handle), see `jaxnorm.tell_gate`.
        rule: (keyword, default ``Rule()``) what the gradient is standardized by, and how; see
            `jaxnorm.Rule`.
        axis_name: (keyword, default None) mapped axes over which the batch is spread, as of Flax's
            BatchNorm, for ``gradient="preconditioned"`` or "standardized"; recorded statistics are
            summed where the gradients are. Not needed under `jax.jit`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense`; integer inputs are refused.

    Transformations, dtypes, numerics, cost: as `jaxnorm.neuronwise_dense`, and all of Flax's lifted
    transformations.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> class MLP(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         x = nn.relu(jaxnorm.linen.Dense(16, gate="relu")(x))
        ...         return jaxnorm.linen.Dense(3, gate=None)(x)
        >>> variables = MLP().init(jax.random.key(0), jnp.ones((2, 5)))
        >>> jax.tree.map(jnp.shape, variables["params"]["Dense_0"])
        {'bias': (16,), 'kernel': (5, 16)}
    """

    @staticmethod
    def shapes(layer: Any, inputs: Any) -> tuple[Any, Any]:
        """[I, O] and [O]."""
        features = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 1
        checks.check_inputs(jnp.shape(inputs), features)
        return (features, layer.features), (layer.features,)

    @staticmethod
    def forward(layer: Any, inputs: Any, kernel: Any, bias: Any, **settings: Any) -> Any:
        """Flax's product."""
        inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
        product = product_of(layer, "dot_general", lax.dot_general)
        operation = dense(product, precision=layer.precision)
        return linear_operation(operation, inputs, kernel, bias, **settings)


class DenseGeneral(Neuronwise, nn.DenseGeneral):
    """`flax.linen.DenseGeneral` with the neuron-wise rule. As `Dense`, over any axes.

    Forward (exact):      z [batch..., samples..., O...], Flax's to the last bit
    Backward (modified):  with groups along `batch_dims`; see `jaxnorm.neuronwise_einsum`

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> heads = jaxnorm.linen.DenseGeneral((4, 16), gate=None)
        >>> heads.init_with_output(jax.random.key(0), jnp.ones((2, 5, 8)))[0].shape
        (2, 5, 4, 16)
    """

    @staticmethod
    def shapes(layer: Any, inputs: Any) -> tuple[Any, Any]:
        """[batch..., I..., O...] and [batch..., O...]."""
        features, axis, batch_dims = _general_axes(layer, inputs)
        batch = tuple(inputs.shape[a] for a in batch_dims)
        return (*batch, *(inputs.shape[a] for a in axis), *features), (*batch, *features)

    @staticmethod
    def forward(layer: Any, inputs: Any, kernel: Any, bias: Any, **settings: Any) -> Any:
        """Flax's product over several axes."""
        inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
        features, axis, batch_dims = _general_axes(layer, inputs)
        product = product_of(layer, "dot_general", lax.dot_general)
        equation, op = dense_general(inputs.ndim, axis, batch_dims, len(features), product)
        return neuronwise_einsum(
            equation, inputs, kernel, bias, einsum_op=op, precision=layer.precision, **settings
        )

    @nn.nowrap
    def initializers(self, inputs: jax.Array) -> tuple[Any, Any]:
        """Flax's: of the kernel as a matrix, of the bias as a vector."""
        outputs = len(_general_axes(self, inputs)[0])

        def kernel_init(key, shape, dtype):
            split = len(shape) - outputs
            flat = (math.prod(shape[:split]), math.prod(shape[split:]))
            return _reshaped(self.kernel_init(key, flat, dtype), shape)

        def bias_init(key, shape, dtype):
            return _reshaped(self.bias_init(key, (math.prod(shape),), dtype), shape)

        return kernel_init, bias_init


class Einsum(Neuronwise, nn.Einsum):
    """`flax.linen.Einsum` with the neuron-wise rule. As `Dense`, for any equation.

    Forward (exact):      z = einsum(x, kernel) + bias, Flax's to the last bit
    Backward (modified):  see `jaxnorm.neuronwise_einsum`

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Einsum((8, 4, 16), "btd,dhk->bthk", gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 8)))[0].shape
        (2, 5, 4, 16)
    """

    @nn.compact
    def __call__(self, inputs: jax.Array, einsum_str: str | None = None) -> Any:
        """Apply the layer; `einsum_str` here or in the constructor."""
        return self.apply_rule(inputs, einsum_str=einsum_str)

    @staticmethod
    def shapes(layer: Any, inputs: Any, einsum_str: str | None = None) -> tuple[Any, Any]:
        """As given, and the axes that z shares with the kernel."""
        equation = nn.merge_param("einsum_str", layer.einsum_str, einsum_str)
        axes = parse(equation, jnp.shape(inputs), tuple(layer.shape))
        return layer.shape, [axes.size[a] for a in axes.z if a in axes.kernel]

    @staticmethod
    def forward(
        layer: Any, inputs: Any, kernel: Any, bias: Any, einsum_str: Any = None, **settings: Any
    ) -> Any:
        """Flax's einsum."""
        inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
        equation = nn.merge_param("einsum_str", layer.einsum_str, einsum_str)
        return neuronwise_einsum(
            equation,
            inputs,
            kernel,
            bias,
            precision=layer.precision,
            preferred_element_type=layer.preferred_element_type,
            **settings,
        )


def _general_axes(layer: Any, inputs: Any) -> tuple[Any, Any, Any]:
    """(features, axis, batch_dims) of a DenseGeneral, none negative, the axes in order."""

    def several(value):
        return (value,) if isinstance(value, int) else tuple(value)

    # Sorted, as Flax does: the kernel's axes follow those of the inputs.
    axis, batch_dims = (
        tuple(sorted(a % inputs.ndim for a in several(axes)))
        for axes in (layer.axis, layer.batch_dims)
    )
    if batch_dims and set(batch_dims) != set(range(max(batch_dims) + 1)):
        raise ValueError(
            f"batch_dims: got {batch_dims}, expected consecutive leading axes from 0 on"
        )
    return several(layer.features), axis, batch_dims


def _reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """Reshape an initial value, boxed or not."""
    if isinstance(array, nn.meta.AxisMetadata):
        return nn.meta.replace_boxed(array, jnp.reshape(array.unbox(), shape))
    return jnp.reshape(array, shape)
