"""In place of a gate: what can be decided for a layer whose activation is not right behind it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from jaxnorm.activations import DEFERRED, Gate, JointGate, resolve_gate


class _Leave:
    """The type of `LEAVE`."""

    def __repr__(self) -> str:
        return "LEAVE"

    def __reduce__(self) -> str:
        return "LEAVE"


LEAVE = _Leave()
"""In place of a gate: leave this layer as it is."""

#: phi(u) -> phi'(u), where that is a function.
SLOPE_OF_VALUE: dict[str, Callable[[Any], Any]] = {
    "relu": lambda a: a > 0,
    "leaky_relu": lambda a: jnp.where(a > 0, 1.0, 0.01),
    "relu6": lambda a: (a > 0) & (a < 6),
    "elu": lambda a: jnp.where(a > 0, 1.0, a + 1),
    "tanh": lambda a: (1 - a) * (1 + a),
    "sigmoid": lambda a: a * (1 - a),
    "softplus": lambda a: -jnp.expm1(-a),
}


@dataclass(frozen=True)
class Deferred:
    """In place of a gate: the activation comes later, where a module shows what it sees.

    Forward (exact):  unchanged
    Weight:           |gate'(u)|, u what the activation is applied to (see `jaxnorm.tell_gate`)

    That module is a normalization whose output u is; it must be called with exactly the layer's
    output. Or, with `applied`, any module around the layer that ends in gate(u) and returns it (a
    residual block), for a gate whose derivative can be told from its value. Both in the same
    transformed function as the layer; otherwise it has its own, uniformly weighted moments.

    Args:
        at: the path of the module, from the root of the model or from the layer's parent. Without
            `applied`: a normalizer, of Flax or of `jaxnorm.linen.normalizers` (or nnx).
        gate: the activation, as everywhere; with `applied` one of relu, leaky_relu, relu6, elu,
            tanh, sigmoid, softplus.
        applied: whether the module returns gate(u) and not u.
        absolute: whether `at` starts at the root and nowhere else, as what was found does.
        moves: what lies between the layer's output and what the module is given, if that is not the
            output itself, as it was found; None if it is.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense` for the gate, and for another gate with
            `applied`.

    Example:
        >>> from jaxnorm.linen import Deferred
        >>> gates = {
        ...     "*/Conv_0": Deferred("BatchNorm_0", "relu"),
        ...     "Block_0/Conv_1": Deferred("Block_0", "relu", applied=True)}
    """

    at: str
    gate: Gate
    applied: bool = False
    absolute: bool = field(default=False, kw_only=True, compare=False, repr=False)
    moves: Any = field(default=None, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_inner("gate", self.gate)
        if self.applied and self.gate not in SLOPE_OF_VALUE:
            raise ValueError(
                f"gate: got {self.gate!r} that is applied already, expected one of "
                f"{', '.join(SLOPE_OF_VALUE)}, whose derivative can be told from its value"
            )


@dataclass(frozen=True)
class Product:
    """In place of a gate: the layer's activation is multiplied by that of another layer.

    Forward (exact):  unchanged, a = gate(z) * other_gate(z of the other layer)
    Weight:           |gate'(z) * other_gate(z of the other layer)|

    Both layers of a gated unit (SwiGLU, GEGLU) have one, each naming the other. They must be called
    in the same transformed function; otherwise they have their own, uniformly weighted moments, and
    a warning says so.

    Args:
        gate: what is applied to this layer's output, or None.
        other: the path of the other layer, from the root of the model or from this layer's parent.
        other_gate: what is applied to the other layer's output, or None.
        absolute: as in `Deferred`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense` for the gates.

    Example:
        >>> from jaxnorm.linen import Product
        >>> gates = {"gate": Product("silu", "up", None), "up": Product(None, "gate", "silu")}
    """

    gate: Gate
    other: str
    other_gate: Gate
    absolute: bool = field(default=False, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_inner("gate", self.gate)
        _check_inner("other_gate", self.other_gate)


@dataclass(frozen=True)
class Several:
    """In place of a gate: several activations see the output, as was found.

    Forward (exact):  unchanged
    Weight:           the sum of what each of them tells

    Args:
        parts: where; at "" an activation sees the output itself.
    """

    parts: tuple[Deferred, ...]


class AsFound(str):
    """In place of a gate: what was found behind the layer's output in a program, by its name.

    It is not the activation of the output itself, so no name could say it: handed in again, the
    program is searched for it again.
    """


def _check_inner(name: str, gate: Gate) -> None:
    if gate is DEFERRED or isinstance(gate, JointGate | Deferred | Product | _Leave):
        raise TypeError(
            f"{name}: got {gate!r}, expected None, the name of an activation or an elementwise "
            "callable"
        )
    resolve_gate(gate)
