"""Flax linen layers: the host's, with the rule in their backward pass."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm import checks
from jaxnorm.functional import linear_operation
from jaxnorm.gates import Gate
from jaxnorm.operations import dense
from jaxnorm.rule import Rule
from jaxnorm.statistics import AxisName


class Dense(nn.Dense):
    """`flax.linen.Dense` with the neuron-wise rule; see `jaxnorm.neuronwise_dense`.

    Forward (exact):      z = x kernel + bias, the host's to the last bit
    Backward (modified):  g_x true; g_W and g_b by the rule

    A subclass of the host's layer with its name, its parameters (``kernel`` [I, O], ``bias`` [O]),
    its initial values and every one of its arguments: checkpoints move both ways. It has no state.

    Attributes:
        gate: (required, keyword) the activation that follows the layer: a name of `jax.nn`, an
            elementwise callable, or None if none follows. It is not applied.
        rule: (keyword) see `jaxnorm.Rule`.
        axis_name: (keyword) mapped axes over which the batch is spread. Not needed under `jax.jit`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense`; integer inputs are refused.

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

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Apply the layer to the last axis of inputs [..., I]; returns z [..., O]."""
        checks.check_floating("x", inputs)
        features = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 1
        checks.check_inputs(jnp.shape(inputs), features)
        kernel = self.param("kernel", self.kernel_init, (features, self.features), self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        arrays: Any = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        inputs, kernel, bias = arrays
        if self.dot_general_cls is not None:
            dot_general = self.dot_general_cls()
            if isinstance(dot_general, nn.Module):
                raise TypeError(
                    f"dot_general_cls: got the module {type(dot_general).__name__}, expected a "
                    "class of plain functions; a product with state cannot run again on statistics"
                )
            operation = dense(dot_general, precision=self.precision)
        elif self.dot_general is not None:
            operation = dense(self.dot_general, precision=self.precision)
        else:
            operation = dense(precision=self.precision)
        return linear_operation(
            operation,
            inputs,
            kernel,
            bias,
            gate=self.gate,
            rule=self.rule,
            axis_name=None if self.is_initializing() else self.axis_name,
        )
