"""How far a layer's output has been followed: `Path`."""

import copy
from dataclasses import dataclass, field

from torchnorm.conversion.alterations import Witness
from torchnorm.conversion.extract import Step
from torchnorm.conversion.moves import Move
from torchnorm.conversion.region import users
from torchnorm.conversion.trace import Call, Op, Value


@dataclass
class Path:
    """The way from a layer's output to one of those that consume it.

    Attributes:
        layer: the call of the layer.
        now: the value that was reached.
        only: of the operations on that value, those that this path is about; None for all.
        steps: elementwise, affine operations on the way, behind the last mixing.
        count: values that the steps have made, the first among them.
        joint: whether the steps split or pool.
        mixed: whether it was normalized, summed with something else, or pooled.
        moves: what was done to its layout since the layer.
        same: values that are as this one, each with its moves.
        visited: all values that were reached.
        witnesses: what the gate was taken from.
        before: the path before the steps that split or pool.
        depth: how many times it was one of several.
        lines: of the report.
    """

    layer: Call
    now: Value
    only: list[Op] | None = None
    steps: list[Step] = field(default_factory=list)
    count: int = 1
    joint: bool = False
    activated: bool = False
    mixed: bool = False
    moves: tuple[Move, ...] = ()
    same: list[tuple[Value, tuple[Move, ...]]] = field(default_factory=list)
    visited: list[Value] = field(default_factory=list)
    witnesses: list[Witness] = field(default_factory=list)
    before: "Path | None" = None
    depth: int = 0
    lines: list[str] = field(default_factory=list)

    def users(self) -> list[Op]:
        """The operations on the value that gradient flows back through."""
        return users(self.now) if self.only is None else self.only

    def only_user(self) -> Op | None:
        """The one operation that takes the value, if it makes one value; else None."""
        found = self.users()
        returned = self.now.is_output and self.only is None
        alone = len(found) == 1 and not returned and len(found[0].outs) == 1
        return found[0] if alone else None

    def move(self, value: Value, *, same: bool = False, moves: tuple[Move, ...] | None = None):
        """Go on to a value, which is the same one if nothing but its layout has changed."""
        self.moves = self.moves if moves is None else moves
        self.now, self.only = value, None
        self.visited.append(value)
        self.same = [*(self.same if same else ()), (value, self.moves)]

    def mix(self, value: Value) -> None:
        """Go on to a value that is no elementwise function of the one before."""
        self.mixed, self.steps, self.count = True, [], 1
        self.move(value)

    def branch(self) -> "Path":
        """Another one from here."""
        other = copy.copy(self)
        other.steps, other.visited = list(self.steps), list(self.visited)
        other.same, other.witnesses = list(self.same), list(self.witnesses)
        other.lines = []
        return other

    def say(self, what: str, value: Value | None = None) -> None:
        """Note down a step for the report."""
        shape = "" if value is None else f" -> {list(value.shape)}"
        self.lines.append(f"{'  ' * (self.depth + 1)}{what}{shape}")

    def ran(self, op: Op) -> None:
        """Note down an operation."""
        self.say(in_module(op), op.outs[0] if op.outs else None)


def in_module(op: Op) -> str:
    """An operation, and the module that ran it."""
    name = op.name.strip("_") or op.name
    module = op.stack[-1].name if op.stack else ""
    return f"{name} in {module!r}" if module else name
