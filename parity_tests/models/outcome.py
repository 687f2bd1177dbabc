"""What was measured on one network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from parity_tests.tolerances import GATE


@dataclass
class Outcome:
    """A network before and after its conversion.

    Attributes:
        name: of the network.
        library: whose modules it is made of: "torch", "linen" or "nnx".
        report: of the conversion.
        errors: what was compared with the oracle -> its worst error.
        unequal: what is not bitwise the framework's, or not finite, and should be.
        seconds: that all this took.
    """

    name: str
    library: str
    report: Any
    errors: dict[str, float] = field(default_factory=dict)
    unequal: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def where(self) -> str:
        """What is furthest off."""
        return max(self.errors, key=lambda name: self.errors[name], default="")

    @property
    def error(self) -> float:
        """By how much."""
        return max(self.errors.values(), default=0.0)

    @property
    def miss(self) -> bool:
        """Whether anything is not as it should be; to compare nothing is not."""
        return not (self.errors and self.error <= GATE["float64"]) or bool(self.unequal)
