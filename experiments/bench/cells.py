"""What was measured, cell by cell, and as JSON has it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.bench.networks import Network
from experiments.bench.steps import Counted
from experiments.bench.timing import Seconds, Spread, ratios


@dataclass
class Cell:
    """One method on one network in one setting.

    Attributes:
        network: which.
        setting: the framework, and what it does with a step.
        method: its name on the command line.
        problem: why there is no number; None if there is one.
        every: `statistics_every` of its rule.
        seconds: of a step.
        compile_seconds: see `Step`.
        counted: what was counted; None before that.
        notes: see `Step`.
    """

    network: Network
    setting: str
    method: str
    problem: str | None = None
    every: int = 1
    seconds: Seconds = field(default_factory=dict)
    compile_seconds: float = 0.0
    counted: Counted | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def timed(self) -> bool:
        """Whether there is a number."""
        return self.problem is None and any(self.seconds.values())


class Results:
    """All cells so far, in the order in which they were begun."""

    def __init__(self) -> None:
        self._cells: dict[tuple[Network, str, str], Cell] = {}

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells.values())

    def begin(self, network: Network, setting: str, method: str) -> Cell:
        """A new cell."""
        cell = self._cells[network, setting, method] = Cell(network, setting, method)
        return cell

    def get(self, network: Network, setting: str, method: str) -> Cell | None:
        """The cell, if it was begun."""
        return self._cells.get((network, setting, method))

    def ratios(self, cell: Cell) -> dict[str, Spread]:
        """Its time by plain's, see `timing.ratios`; nothing where one of them is missing."""
        plain = self.get(cell.network, cell.setting, "plain")
        if plain is None or not plain.timed or not cell.timed:
            return {}
        return ratios(cell.seconds, plain.seconds, cell.every)

    def to_json(self) -> list[dict[str, Any]]:
        """Every cell with all its numbers."""
        return [self._cell_to_json(cell) for cell in self]

    def _cell_to_json(self, cell: Cell) -> dict[str, Any]:
        counted = cell.counted
        found = {
            "network": {"title": cell.network.title, **asdict(cell.network)},
            "setting": cell.setting,
            "method": cell.method,
            "problem": cell.problem,
            "notes": cell.notes,
            "statistics_every": cell.every,
            "seconds_per_step": cell.seconds,
            "ratios": {name: asdict(spread) for name, spread in self.ratios(cell).items()},
            "compile_seconds": cell.compile_seconds,
        }
        if counted is not None:
            parts = {part: counts.to_json() for part, counts in counted.parts.items()}
            found |= {"state_bytes": counted.state_bytes, "counts": parts}
        return found
