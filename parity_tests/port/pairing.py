"""Which layer is which, and the numbers of one model under the names of the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jaxnorm.checkpoints.layout import Shape
from parity_tests.port.links import TRIED, Link
from parity_tests.port.sides.base import Arrays, Side
from parity_tests.port.units import Unit


@dataclass(frozen=True)
class Pair:
    """A layer on both sides."""

    flax: Unit
    torch: Unit
    sureness: str


@dataclass
class Pairing:
    """What belongs together.

    Attributes:
        pairs: the layers.
        links: their entries.
        spare_flax: entries of paired layers that only Flax has (a bias, say): name -> shape.
        spare_torch: those that only PyTorch has.
        fixed: (name, rows) of PyTorch that is not trained: of a sum of two, the second.
        groups: the places in `pairs` of those that only their order tells apart, by group.
        notes: what a reader should know about it.
        again: the pairing of other pairs of the same units.
    """

    pairs: list[Pair]
    links: list[Link]
    spare_flax: dict[str, Shape] = field(default_factory=dict)
    spare_torch: dict[str, Shape] = field(default_factory=dict)
    fixed: tuple[tuple[str, tuple[int, int] | None], ...] = ()
    groups: list[list[int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    again: Callable[[list[Pair]], Pairing] = field(
        repr=False, default=lambda pairs: Pairing([], [])
    )

    def exchanged(self, a: int, b: int) -> Pairing:
        """The pairing in which two pairs have each other's layer of PyTorch."""
        pairs = list(self.pairs)
        pairs[a] = replace(self.pairs[a], torch=self.pairs[b].torch, sureness=TRIED)
        pairs[b] = replace(self.pairs[b], torch=self.pairs[a].torch, sureness=TRIED)
        return self.again(pairs)

    def to_flax(self, like: Side, torch: Arrays, *, state: bool) -> Arrays:
        """PyTorch's numbers under Flax's names; what is not paired stays as it is."""
        found = {n: a.copy() for n, a in (like.states if state else like.parameters).items()}
        for link in self.links:
            if link.state == state:
                link.of_flax(found)[...] = link.to_flax(torch)
        return found

    def to_torch(self, like: Side, flax: Arrays, *, state: bool) -> Arrays:
        """Flax's numbers under PyTorch's names; what is not paired stays as it is."""
        found = {n: a.copy() for n, a in (like.states if state else like.parameters).items()}
        for link in self.links:
            if link.state == state:
                link.to_torch(link.of_flax(flax), found)
        return found
