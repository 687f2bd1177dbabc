"""Flax nnx layers: the host's, with the rule in their backward pass."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm import checks
from jaxnorm.functional import linear_operation
from jaxnorm.gates import Gate, resolve_gate
from jaxnorm.operations import dense
from jaxnorm.rule import Rule
from jaxnorm.statistics import AxisName


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with the neuron-wise rule; see `jaxnorm.neuronwise_dense`.

    Forward (exact):      z = x kernel + bias, the host's to the last bit
    Backward (modified):  g_x true; g_W and g_b by the rule

    A subclass of the host's layer with its parameters (``kernel`` [I, O], ``bias`` [O]), its
    initial values and every one of its arguments. It has no state.

    Args:
        in_features: I.
        out_features: O.
        gate: (required) the activation that follows the layer: a name of `jax.nn`, an elementwise
            callable, or None if none follows. It is not applied.
        rule: see `jaxnorm.Rule`.
        axis_name: mapped axes over which the batch is spread. Not needed under `jax.jit`.
        rngs: as the host's.
        **kwargs: every other argument of `flax.nnx.Linear`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Linear(5, 16, gate="relu", rngs=nnx.Rngs(0))
        >>> jax.nn.relu(layer(jnp.ones((2, 5)))).shape
        (2, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        gate: Gate,
        rule: Rule = Rule(),
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
        **kwargs,
    ) -> None:
        resolve_gate(gate)
        checks.check_rule(rule)
        super().__init__(in_features, out_features, rngs=rngs, **kwargs)
        self.gate = gate
        self.rule = rule
        self.axis_name = axis_name

    def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
        """Apply the layer to the last axis of inputs [..., I]; returns z [..., O]."""
        checks.check_floating("x", inputs)
        checks.check_inputs(jnp.shape(inputs), self.in_features)
        kernel = self.kernel[...]
        bias = None if self.bias is None else self.bias[...]
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        kwargs = {"precision": self.precision, "out_sharding": out_sharding}
        if self.preferred_element_type is not None:
            kwargs["preferred_element_type"] = self.preferred_element_type
        return linear_operation(
            dense(self.dot_general, **kwargs),
            inputs,
            kernel,
            bias,
            gate=self.gate,
            rule=self.rule,
            axis_name=self.axis_name,
        )
