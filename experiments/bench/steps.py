"""What every timed step is, whichever framework runs it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

RATE = 1e-5
"""Learning rate of all steps: small, so that nothing overflows in some thousand of them."""

WARM = 3
"""Steps, of each kind, before anything is timed."""


@dataclass(frozen=True)
class Counts:
    """What is counted of a step, and not timed; None where there is no way to know.

    Attributes:
        flops: floating point operations.
        bytes_accessed: read and written by all operators, or by all of XLA's fusions.
        operators: that PyTorch dispatches.
        transient_bytes: the most that is allocated at a time beside what stays.
        argument_bytes: of XLA's program.
        output_bytes: of XLA's program, as far as they are no arguments that are given away.
    """

    flops: float | None = None
    bytes_accessed: float | None = None
    operators: int | None = None
    transient_bytes: int | None = None
    argument_bytes: int | None = None
    output_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Counted:
    """What is counted of a method.

    Attributes:
        state_bytes: parameters, optimizer state, statistics.
        parts: counts by the part of the step, see `Step.parts`.
    """

    state_bytes: int
    parts: dict[str, Counts] = field(default_factory=dict)


class Step(Protocol):
    """A whole training step on data that is on the device, warm: forward, backward, optimizer.

    Attributes:
        every: `statistics_every` of its rule; 1 where all steps are alike.
        compile_seconds: the first call minus a later one, or XLA's own time.
        notes: what a reader should know.
    """

    every: int
    compile_seconds: float
    notes: list[str]

    def __call__(self) -> None:
        """Begin one step."""
        ...

    def wait(self) -> None:
        """Until all steps are done."""
        ...

    def go_to(self, part: str) -> None:
        """Let the next steps be of that part of `schedule.parts`, as many as are so in a row."""
        ...

    def count(self) -> Counted:
        """Count; the steps that are made for it are not timed."""
        ...
