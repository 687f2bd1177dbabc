"""What was compiled, cell by cell, and as JSON has it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.bench import schedule
from experiments.bench.networks import Network
from experiments.tpu.programs import Program


@dataclass
class Cell:
    """One method on one network for one target.

    Attributes:
        target: its name.
        sharding: see `compile_step`.
        network: which.
        method: its name on the command line.
        every: see `Rule.interval`.
        problem: why there is no number; None if there is one.
        programs: by the part of the step.
    """

    target: str
    sharding: str
    network: Network
    method: str
    every: int = 1
    problem: str | None = None
    programs: dict[str, Program] = field(default_factory=dict)

    @property
    def whole(self) -> Program | None:
        """The program that is run, with whatever conditions it has."""
        return self.programs.get(schedule.ALIKE)

    def average(self, of: Callable[[Program], float | None]) -> float | None:
        """A number of a step, on average over a run; None where it is not known."""
        found = [self.part(part, of) for part in schedule.parts(self.every)]
        if len(found) == 1 or None in found:
            return found[0] if len(found) == 1 else None
        due, rest = found
        assert due is not None
        assert rest is not None
        share = schedule.share_of_run(self.every)
        return share * due + (1 - share) * rest

    def part(self, part: str, of: Callable[[Program], float | None]) -> float | None:
        """A number of one kind of step."""
        program = self.programs.get(part)
        return None if program is None else of(program)

    def sent(self, part: str) -> Counter[str]:
        """Bytes by kind of collective, in one kind of step of the program that is run."""
        if self.whole is None:
            return Counter()
        found = self.whole.collectives
        return (found.least if part == schedule.WITHOUT else found.most).bytes

    def average_sent(self, kind: str) -> float:
        """Bytes of a kind of collective, on average over a run."""
        share = schedule.share_of_run(self.every)
        due, rest = (self.sent(part)[kind] for part in (schedule.WITH, schedule.WITHOUT))
        return share * due + (1 - share) * rest

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "target": self.target,
            "sharding": self.sharding,
            "network": {"title": self.network.title, **asdict(self.network)},
            "method": self.method,
            "statistics_every": self.every,
            "problem": self.problem,
            "programs": {part: program.to_json() for part, program in self.programs.items()},
        }
