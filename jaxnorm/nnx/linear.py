"""`Linear`, `LinearGeneral` and `Einsum` of nnx, with the rule in their backward pass."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxnorm import checks
from jaxnorm.backward.linear_operation import linear_operation
from jaxnorm.functional import neuronwise_einsum
from jaxnorm.nnx.base import Neuronwise, with_rule
from jaxnorm.operations.einsum import dense_general
from jaxnorm.operations.linear import dense


class Linear(Neuronwise, nnx.Linear):
    """`flax.nnx.Linear` with the neuron-wise rule; see `jaxnorm.neuronwise_dense`.

    Forward (exact):      z [..., O] = x [..., I] kernel + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer with its parameters (``kernel`` [I, O], ``bias`` [O]), its
    initial values and every one of its arguments, by position or keyword. It has no other state,
    unless `init_statistics` gives it statistics; without them it trains as Flax's.

    Args:
        *args: the arguments of `flax.nnx.Linear`.
        gate: (required, keyword) the activation that follows the layer; its derivative gates the
            neuron: it says on which samples, or how much, the neuron learns. A name of `jax.nn`
            (``"relu"``), an elementwise callable, or None if none follows. It is not applied. With
            `jaxnorm.DEFERRED` the layer returns (z, handle), see `jaxnorm.tell_gate`.
        rule: (keyword, default ``Rule()``) what the gradient is standardized by, and how; see
            `jaxnorm.Rule`.
        axis_name: (keyword, default None) mapped axes over which the batch is spread, as of Flax's
            BatchNorm, for ``gradient="preconditioned"`` or "standardized"; recorded statistics are
            summed where the gradients are. Not needed under `jax.jit`.
        **kwargs: the arguments of `flax.nnx.Linear`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense`; integer inputs are refused.

    Transformations, dtypes, numerics, cost: as `jaxnorm.neuronwise_dense`, and all of nnx's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Linear(5, 16, gate="relu", rngs=nnx.Rngs(0))
        >>> jax.nn.relu(layer(jnp.ones((2, 5)))).shape
        (2, 16)
    """

    __init__ = with_rule(nnx.Linear.__init__)

    def forward(self, inputs: Any, kernel: Any, bias: Any, product: Any, **settings: Any) -> Any:
        """Flax's product."""
        checks.check_inputs(jnp.shape(inputs), self.in_features)
        operation = dense(self.dot_general, **product)
        return linear_operation(operation, inputs, kernel, bias, **settings)


class LinearGeneral(Neuronwise, nnx.LinearGeneral):
    """`flax.nnx.LinearGeneral` with the neuron-wise rule. As `Linear`, over any axes.

    Forward (exact):      z [batch..., samples..., O...], Flax's to the last bit
    Backward (modified):  with groups along `batch_axis`; see `jaxnorm.neuronwise_einsum`

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> heads = jaxnorm.nnx.LinearGeneral(8, (4, 16), gate=None, rngs=nnx.Rngs(0))
        >>> heads(jnp.ones((2, 5, 8))).shape
        (2, 5, 4, 16)
    """

    __init__ = with_rule(nnx.LinearGeneral.__init__)

    def forward(self, inputs: Any, kernel: Any, bias: Any, product: Any, **settings: Any) -> Any:
        """Flax's product over several axes."""
        # Sorted, as Flax does: the kernel's axes follow those of the inputs.
        axis, batch = (
            tuple(sorted(a % inputs.ndim for a in axes))
            for axes in (tuple(self.axis), tuple(self.batch_axis))
        )
        dot_general = self.dot_general or lax.dot_general
        if self.dot_general_cls is not None:
            dot_general = self.dot_general_cls()
        equation, op = dense_general(inputs.ndim, axis, batch, len(self.out_features), dot_general)
        return neuronwise_einsum(
            equation, inputs, kernel, bias, einsum_op=op, **product, **settings
        )


class Einsum(Neuronwise, nnx.Einsum):
    """`flax.nnx.Einsum` with the neuron-wise rule. As `Linear`, for any equation.

    Forward (exact):      z = einsum(x, kernel) + bias, Flax's to the last bit
    Backward (modified):  see `jaxnorm.neuronwise_einsum`

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Einsum(
        ...     "btd,dhk->bthk", (8, 4, 16), (4, 16), gate="relu", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 5, 8))).shape
        (2, 5, 4, 16)
    """

    __init__ = with_rule(nnx.Einsum.__init__)

    def __call__(self, inputs: jax.Array, einsum_str: str | None = None, out_sharding=None) -> Any:
        """Apply the layer; an equation given here takes precedence."""
        return self.apply_rule(inputs, einsum_str or self.einsum_str, out_sharding=out_sharding)

    def forward(
        self, inputs: Any, kernel: Any, bias: Any, product: Any, equation: str, **settings: Any
    ) -> Any:
        """Flax's einsum."""
        return neuronwise_einsum(
            equation, inputs, kernel, bias, einsum_op=self.einsum_op, **product, **settings
        )
