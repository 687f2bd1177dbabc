"""The table that reports what a conversion decides for each layer of a model."""

from dataclasses import dataclass, field
from typing import Any

from jaxnorm.activations import Gate, JointGate
from jaxnorm.conversion.decisions import LEAVE, Deferred, Product
from jaxnorm.rule import Rule


@dataclass(frozen=True)
class Row:
    """One layer of a `Report`.

    Attributes:
        layer: its path in the model.
        kind: its class.
        gate: what it was given; None if no activation follows, `LEAVE` if it was left alone.
        reason: where the gate was found, or why the layer was left alone.
        converted: whether the rule applies to the layer.
        deferred: whether it is told at run time what its activation sees.
        unresolved: whether there may be an activation that was not recognized, or cannot be
            reached, so that the layer has its own, uniformly weighted moments.
        way: from the layer's output to its activation, in words; see `Report.explain`.
    """

    layer: str
    kind: str
    gate: Any
    reason: str
    unresolved: bool = False
    way: tuple[str, ...] = field(default=(), repr=False, compare=False)

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
        KeyError: on ``report[layer]`` and ``report.explain(layer)`` for a layer that does not
            exist.

    Behavior: ``report["path"]`` is one row; `converted`, `left`, `deferred` and `unresolved` are
    those rows; `gates` can be edited and handed in as ``gates=``.

    Example:
        >>> from jaxnorm.conversion.report import Report, Row
        >>> print(Report((Row("Dense_0", "Dense", "relu", "direct"),)))
        layer    kind   gate  reason
        Dense_0  Dense  relu  direct
        1 of 1 layer with a matrix is converted
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

    @property
    def verdict(self) -> str:
        """How many of the layers are converted, in one line."""
        count, total, missed = len(self.converted), len(self.rows), self.unresolved
        layers = "layer" if total == 1 else "layers"
        text = (
            f"{count} of {total} {layers} with a matrix {'is' if total == 1 else 'are'} converted"
        )
        if missed:
            seen = f"see report.explain({missed[0].layer!r})"
            text += (
                f"; {len(missed)} may have an activation that was not found (unresolved): {seen}"
            )
        return text

    def explain(self, layer: str) -> str:
        """The way from a layer's output to its activation, step by step, as text to print.

        Each line is one operation: its name, the module that it is in, and the shape that it
        returns; lines that are further in belong to one of several consumers. The last line says
        where the way ended and why.

        Args:
            layer: as in ``report[layer]``.

        Raises:
            KeyError: for a layer that does not exist.
        """
        row = self[layer]
        name = gate_name(row.gate)
        end = f"gate: {name}, {row.reason}" if row.converted else f"left alone: {row.reason}"
        if row.unresolved:
            end = f"gate: {name}, unresolved: {row.reason}"
        return "\n".join([f"{row.layer or '(root)'} ({row.kind})", *row.way, end])

    def __str__(self) -> str:
        lines = [("layer", "kind", "gate", "reason")]
        for row in self.rows:
            reason = f"unresolved: {row.reason}" if row.unresolved else row.reason
            reason = reason if row.converted else f"left alone: {reason}"
            gate = gate_name(row.gate) if row.converted else "-"
            lines.append((row.layer or "(root)", row.kind, gate, reason))
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        text = [
            "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[3]])
            for line in lines
        ]
        text.append(self.verdict + (f"; {self.rule}" if self.rule is not None else ""))
        return "\n".join(text)


def gate_name(gate: Gate) -> str:
    """A gate in words."""
    if isinstance(gate, JointGate):
        return f"joint {gate_name(gate.phi)}"
    if isinstance(gate, Deferred):
        return gate_name(gate.gate)
    if isinstance(gate, Product):
        return " * ".join("z" if g is None else gate_name(g) for g in (gate.gate, gate.other_gate))
    if gate is None or gate is LEAVE or isinstance(gate, str):
        return str(gate)
    return str(getattr(gate, "__name__", None) or type(gate).__name__)
