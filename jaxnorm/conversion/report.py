"""What a conversion of a whole model decides for each layer, and the table that reports it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp

from jaxnorm.activations import DEFERRED, Gate, JointGate, resolve_gate
from jaxnorm.rule import Rule


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
            `applied`: a BatchNorm, LayerNorm, GroupNorm, RMSNorm or InstanceNorm of Flax.
        gate: the activation, as everywhere; with `applied` one of relu, leaky_relu, relu6, elu,
            tanh, sigmoid, softplus.
        applied: whether the module returns gate(u) and not u.
        absolute: whether `at` starts at the root and nowhere else, as what was found does.

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
    in the same transformed function; otherwise they have their own, uniformly weighted moments.

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


def _check_inner(name: str, gate: Gate) -> None:
    if gate is DEFERRED or isinstance(gate, JointGate | Deferred | Product | _Leave):
        raise TypeError(
            f"{name}: got {gate!r}, expected None, the name of an activation or an elementwise "
            "callable"
        )
    resolve_gate(gate)


def check_choice(where: str, gate: Any) -> Any:
    """Return what a layer may be given, or raise an error that names the layer."""
    if gate is LEAVE or isinstance(gate, Deferred | Product):
        return gate
    try:
        if gate is DEFERRED:
            raise TypeError("gate: got DEFERRED, expected Deferred(at, gate), which says where")
        resolve_gate(gate)
    except (TypeError, ValueError) as error:
        raise type(error)(f"gates[{where!r}]: {error}") from None
    return gate


def gate_name(gate: Gate) -> str:
    """A gate in words."""
    if isinstance(gate, JointGate):
        return f"joint {gate_name(gate.phi)}"
    if isinstance(gate, Deferred):
        return gate_name(gate.gate)
    if isinstance(gate, Product):
        own, other = ("z" if g is None else gate_name(g) for g in (gate.gate, gate.other_gate))
        return f"{own} * {other}"
    if gate is None or isinstance(gate, str | _Leave):
        return str(gate)
    return str(getattr(gate, "__name__", None) or type(gate).__name__)


@dataclass(frozen=True)
class Row:
    """One layer of a `Report`.

    Attributes:
        layer: its path.
        kind: its class.
        gate: what it was given; `LEAVE` if it was left alone.
        how: how the gate was found, or why the layer was left alone.
        unresolved: whether there may be an activation that was not recognized, or cannot be
            reached, so that the layer has its own, uniformly weighted moments.
    """

    layer: str
    kind: str
    gate: Any
    how: str
    unresolved: bool = False

    @property
    def converted(self) -> bool:
        """Whether the rule applies to the layer."""
        return self.gate is not LEAVE

    @property
    def deferred(self) -> bool:
        """Whether the layer is told at run time what its activation sees."""
        return isinstance(self.gate, Deferred | Product)


@dataclass(frozen=True)
class Report:
    """What was decided for every layer of a model; prints as a table.

    Args:
        rows: one `Row` for each module that owns a matrix.
        rule: that of the converted layers, if it is known.

    Raises:
        KeyError: on ``report[layer]`` for a layer that does not exist.

    Behavior: ``report["path"]`` is one row; `converted`, `left`, `deferred` and `unresolved` are
    those rows; `gates` can be edited and handed in as ``gates=``.

    Example:
        >>> from jaxnorm.conversion.report import Report, Row
        >>> print(Report((Row("Dense_0", "Dense", "relu", "direct"),)))
        layer    kind   gate  how
        Dense_0  Dense  relu  direct
        1 layer converted (0 deferred, 0 unresolved), 0 left alone
    """

    rows: tuple[Row, ...]
    rule: Rule | None = None

    @property
    def gates(self) -> dict[str, Any]:
        """Path -> gate, `LEAVE` for the layers that were left alone."""
        return {row.layer: row.gate for row in self.rows}

    @property
    def converted(self) -> tuple[Row, ...]:
        """The layers to which the rule applies."""
        return tuple(row for row in self.rows if row.converted)

    @property
    def left(self) -> tuple[Row, ...]:
        """The layers that were left as they are."""
        return tuple(row for row in self.rows if not row.converted)

    @property
    def deferred(self) -> tuple[Row, ...]:
        """The layers that are told at run time what their activation sees."""
        return tuple(row for row in self.rows if row.deferred)

    @property
    def unresolved(self) -> tuple[Row, ...]:
        """The layers whose activation, if there is one, was not recognized."""
        return tuple(row for row in self.rows if row.unresolved)

    def __getitem__(self, layer: str) -> Row:
        for row in self.rows:
            if row.layer == layer:
                return row
        raise KeyError(f"layer: got {layer!r}, expected one of {[row.layer for row in self.rows]}")

    def __str__(self) -> str:
        lines = [("layer", "kind", "gate", "how")]
        for row in self.rows:
            how = f"unresolved: {row.how}" if row.unresolved else row.how
            how = how if row.converted else f"left alone: {how}"
            gate = gate_name(row.gate) if row.converted else "-"
            lines.append((row.layer or "(root)", row.kind, gate, how))
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        text = [
            "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[3]])
            for line in lines
        ]
        count = len(self.converted)
        text.append(
            f"{count} layer{'s' * (count != 1)} converted ({len(self.deferred)} deferred, "
            f"{len(self.unresolved)} unresolved), {len(self.left)} left alone"
            + (f"; {self.rule}" if self.rule is not None else "")
        )
        return "\n".join(text)


class Choices:
    """Which gate each layer gets: from patterns, a callable, or a report.

    Args:
        name: of the argument's owner, for errors.
        gates: {pattern: gate}, a callable (path, module) -> gate, or a `Report`.
    """

    def __init__(self, name: str, gates: Any) -> None:
        self.name, self.explicit = name, not isinstance(gates, Report)
        if isinstance(gates, Report):
            gates = gates.gates
            self.patterns: dict[str, Any] | None = None
            self.call: Callable[[str, Any], Any] = lambda path, module: gates.get(path, LEAVE)
        elif isinstance(gates, Mapping):
            self.patterns = {
                pattern: check_choice(pattern, gate) for pattern, gate in gates.items()
            }
            self.call = self._match
        elif callable(gates):
            self.patterns = None
            self.call = lambda path, module: check_choice(path, gates(path, module))
        else:
            raise TypeError(
                f"gates: got {gates!r}, expected 'auto', a dict {{pattern: gate}}, a callable "
                "(path, module) -> gate, or a Report"
            )

    def __call__(self, path: str, module: Any) -> Any:
        """The gate of the layer at `path`, or LEAVE."""
        return self.call(path, module)

    def _match(self, path: str, module: Any) -> Any:
        del module
        for pattern, gate in (self.patterns or {}).items():
            if fnmatchcase(path, pattern):
                return gate
        return LEAVE

    def check_used(self, paths: Iterable[str]) -> None:
        """Raise a ValueError for a pattern that matches none of the layers."""
        paths = list(paths)
        for pattern, gate in (self.patterns or {}).items():
            if gate is not LEAVE and not any(fnmatchcase(path, pattern) for path in paths):
                raise ValueError(
                    f"gates: got the pattern {pattern!r}, which matches no layer, expected one "
                    f"that matches one of {', '.join(repr(path) for path in paths)}"
                )


def no_layers(name: str, kinds: Iterable[str]) -> ValueError:
    """The error about a model that has nothing to convert."""
    return ValueError(
        f"{name}: got a model without a layer to convert, expected at least one of "
        f"{', '.join(kinds)}, itself and not a subclass"
    )


def means(gate: Deferred | Product, path: str, of: str) -> bool:
    """Whether the gate of the layer `of` names `path`, from the root or from its parent."""
    named = gate.other if isinstance(gate, Product) else gate.at
    if gate.absolute:
        return path == named
    parent, _, _ = of.rpartition("/")
    return path in (named, f"{parent}/{named}" if parent else named)
