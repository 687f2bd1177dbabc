"""What the devices say to each other in a step, read off XLA's optimized program."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
"""Of collectives, as HLO names them."""

PERMUTE = "collective-permute"
"""What moves data only because two operations want it in different places."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BRANCH = re.compile(r"(?:true|false)_computation=(%[\w.-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")

SCATTER = "all-reduce-scatter"
"""Computations of this name are what XLA for TPUs makes of a reduce-scatter."""


@dataclass
class Collectives:
    """Of a step, on one device.

    Attributes:
        bytes: by kind: of the whole array, before it is scattered or after it is gathered.
        counts: by kind: how many there are.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Collectives") -> "Collectives":
        return Collectives(self.bytes + other.bytes, self.counts + other.counts)

    @property
    def order(self) -> tuple[int, int]:
        """By which of two is the larger."""
        return self.bytes.total(), self.counts.total()

    def to_json(self) -> dict[str, Any]:
        """Both, as dictionaries."""
        return {"bytes": dict(self.bytes), "counts": dict(self.counts)}


@dataclass(frozen=True)
class Range:
    """Of a step whose conditions choose the smaller branches, or the larger ones."""

    least: Collectives
    most: Collectives

    def to_json(self) -> dict[str, Any]:
        """Both."""
        return {"least": self.least.to_json(), "most": self.most.to_json()}


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    rest: str

    @property
    def kind(self) -> str | None:
        """Of the collective that it is, or begins."""
        name = self.opcode.removesuffix("-start")
        return name if name in KINDS else None


def read(text: str) -> Range:
    """The collectives of a program.

    Each channel counts once: an asynchronous collective is there twice, where it begins and where
    it ends. So does the body of a loop.

    Args:
        text: what ``as_text()`` of a compiled program gives.
    """
    computations: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[2]
            computations[current] = []
            entry = current if found[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_Instruction(*found.groups()))
    return _Reader(computations).of(entry, set())


class _Reader:
    def __init__(self, computations: dict[str, list[_Instruction]]) -> None:
        self.computations = computations

    def of(self, name: str, seen: set[str]) -> Range:
        """Of a computation and all that it calls; `seen` has the channels before it."""
        least, most = Collectives(), Collectives()
        for instruction in self.computations.get(name, ()):
            own = self._own(name, instruction, seen)
            least, most = least + own, most + own
            for called in _CALLED.findall(instruction.rest):
                inner = self.of(called, seen)
                least, most = least + inner.least, most + inner.most
            if branches := list(_branches(instruction.rest)):
                ways = [self.of(branch, {*seen}) for branch in branches]
                least += min((way.least for way in ways), key=lambda each: each.order)
                most += max((way.most for way in ways), key=lambda each: each.order)
        return Range(least, most)

    def _own(self, name: str, instruction: _Instruction, seen: set[str]) -> Collectives:
        kind = instruction.kind
        if kind is None:
            return Collectives()
        channel = _CHANNEL.search(instruction.rest)
        mark = channel[1] if channel else f"{name}/{instruction.name}"
        if mark in seen:
            return Collectives()
        seen.add(mark)
        scattered = name.startswith(SCATTER)
        size = self._size(name, instruction)
        kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
        return Collectives(Counter({kind: size}), Counter({kind: 1}))

    def _size(self, name: str, instruction: _Instruction) -> int:
        result = _bytes(instruction.type)
        if instruction.opcode not in ("reduce-scatter", "reduce-scatter-start", "all-gather-start"):
            return result
        types = {each.name: each.type for each in self.computations[name]}
        given = instruction.rest.split("), ")[0]
        operands = sum(_bytes(types.get(each, "")) for each in _NAME.findall(given))
        return operands if instruction.kind == "reduce-scatter" else result - operands


def _branches(rest: str) -> Iterator[str]:
    if found := _BRANCHES.search(rest):
        yield from _NAME.findall(found[1])
    for each in _BRANCH.findall(rest):
        yield each.removeprefix("%")


def _bytes(type: str) -> int:
    """Of all arrays of a type."""
    total = 0
    for letters, bits, shape in _ARRAY.findall(type):
        size = math.prod(int(extent) for extent in shape.split(",") if extent)
        width = 8 if letters == "pred" else int(bits or 0)
        total += size * width // 8
    return total
