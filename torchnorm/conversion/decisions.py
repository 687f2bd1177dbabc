"""What was found for a layer: its gate, and where the activation is seen if not right behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torchnorm.activations import Gate
from torchnorm.conversion.alterations import Witness
from torchnorm.conversion.moves import Move, Transport
from torchnorm.conversion.trace import Call, Op, Value


class Decision:
    """What was decided for one layer, and the reason in words."""

    gate: Gate
    reason: str
    converted = True
    deferred = False
    unresolved: bool = False
    witnesses: Sequence[Witness] = ()
    way: Sequence[str] = ()  # see `Report.explain`


@dataclass
class Left(Decision):
    """The layer is left alone."""

    reason: str
    gate = None
    converted = False


@dataclass
class Direct(Decision):
    """The gate can be given to the layer itself; None if no activation follows."""

    gate: Gate
    reason: str
    unresolved: bool = False


@dataclass
class Recurrent(Decision):
    """The layer runs step by step, and tells its products the slopes of these, its own gates."""

    gate: Gate | tuple[Gate, ...]
    reason: str = "recurrent: the slopes of its own gates"
    deferred = True


@dataclass
class Deferred(Decision):
    """The activation is seen at a module: the layer is told its gate there."""

    gate: Gate
    module: Call
    side: str  # "input" or "output" of the module
    transport: Transport
    calls: int  # 1: at the first call of the module after the layer
    reason: str
    deferred = True


@dataclass
class Several(Decision):
    """Several activations see the output: the layer has the sum of what each of them tells it."""

    parts: Sequence[Direct | Deferred]
    reason: str
    deferred = True

    def __post_init__(self) -> None:
        gates: list[Gate] = []
        gates.extend(part.gate for part in self.parts if part.gate not in gates)
        self.gate = gates[0] if len(gates) == 1 else tuple(gates)


@dataclass
class Factor:
    """The activation is multiplied by another tensor; `otherwise` if by no other layer's."""

    layer: Call
    gate: Gate
    operation: Op
    operand: Value
    layout: tuple[Move, ...]  # of the operand
    otherwise: Direct

    def fits(self, other: "Factor") -> bool:
        """Whether the two are the factors of one product, sample by sample."""
        same = self.layer.outs[0].shape == other.layer.outs[0].shape
        return same and self.layout == other.layout and self.operand is not other.operand


@dataclass
class Product(Decision):
    """A gated unit of two layers: each is told its gate with the other's value."""

    factors: dict[str, Factor]  # by the names of the two layers, sorted
    name: str  # of this layer
    deferred = True

    def __post_init__(self) -> None:
        self.gate = self.factors[self.name].gate
        self.reason = f"gated with {next(name for name in self.factors if name != self.name)}"
