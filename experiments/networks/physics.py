"""A network and its derivatives by its inputs, for a loss that holds a differential equation."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import jaxnorm


@dataclass(frozen=True)
class WithDerivatives:
    """u(t, x) of a network, with u_t, u_x and u_xx.

    The network runs once, so a layer records the statistics of each sample once. A sample's output
    must be that of the sample alone: the derivatives of the whole batch are taken along one
    direction at a time.

    Attributes:
        network: maps [N, 2] to [N, 1].
    """

    network: Any

    @property
    def rule(self) -> jaxnorm.Rule | None:
        """The network's."""
        return self.network.rule

    def init(self, key: jax.Array, inputs: jax.Array, *, train: bool) -> Any:
        """The network's variables."""
        return self.network.init(key, inputs, train=train)

    def apply(self, variables: Any, inputs: jax.Array, *, train: bool, mutable: Any = False) -> Any:
        """Map (t, x) [N, 2] to (u, u_t, u_x, u_xx) [N, 4]; nothing is mutable."""
        along_t, along_x = (jnp.zeros_like(inputs).at[:, n].set(1) for n in range(2))

        def u(inputs: jax.Array) -> jax.Array:
            return self.network.apply(variables, inputs, train=train)

        def with_u_x(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jax.jvp(u, (inputs,), (along_x,))

        (value, u_x), derivative = jax.linearize(with_u_x, inputs)
        u_t, _ = derivative(along_t)
        _, u_xx = derivative(along_x)
        outputs = jnp.concatenate([value, u_t, u_x, u_xx], axis=-1)
        return outputs if mutable is False else (outputs, {})
