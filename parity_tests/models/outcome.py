"""What can be measured, and what was, on one network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parity_tests.tolerances import GATE


@dataclass
class Outcome:
    """A network before and after its conversion.

    Attributes:
        name: of the network.
        library: whose modules it is made of, "torch", "linen" or "nnx"; or "function": what is
            measured is `jaxnorm.neuronwise` of a function of parameters.
        report: of the conversion.
        errors: what was compared with the oracle -> its worst error.
        unequal: what is not bitwise the framework's, or not finite, and should be.
        unclear: layers whose output several activations see, so that no slope is the right one;
            they are not compared.
        seconds: that all this took.
    """

    name: str
    library: str
    report: Any
    errors: dict[str, float] = field(default_factory=dict)
    unequal: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
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
        """Whether anything is not as it should be; converted layers are compared."""
        if self.report is not None and not self.report.converted:
            return bool(self.unequal)
        return not (self.errors and self.error <= GATE["float64"]) or bool(self.unequal)


#: What a network's library belongs to.
FRAMEWORK_OF = {"torch": "torch", "linen": "jax", "nnx": "jax", "function": "jax"}


class Variant(NamedTuple):
    """What is not as by default in the coordinates.

    Attributes:
        epsilon: of the rule.
        skip: layers of networks in PyTorch that are left alone, as patterns.
    """

    epsilon: float = 0.0
    skip: tuple[str, ...] = ()


class Trial(NamedTuple):
    """A network in training.

    Attributes:
        task: what it learns, in words.
        rate: the larger of the two rates.
        run: (seed, rate, None for plain AdamW or the variant of ours) -> the loss in the end.
    """

    task: str
    rate: float
    run: Callable[[int, float, Variant | None], float]


class Network(NamedTuple):
    """What can be measured.

    Attributes:
        name: of the network.
        library: as in `Outcome`.
        measure: () -> its outcome.
        needs: modules that it is made of, which may be absent.
        trial: how it is trained; None: it is not.
    """

    name: str
    library: str
    measure: Callable[[], Outcome]
    needs: tuple[str, ...] = ()
    trial: Trial | None = None

    @property
    def label(self) -> str:
        """As `--only` takes it."""
        return f"{self.name}/{self.library}"

    def matches(self, wanted: str) -> bool:
        """Whether it is one of those that are wanted."""
        name, slash, library = wanted.lower().rpartition("/")
        if not slash:
            name, library = library, ""
        of = ("", self.library, FRAMEWORK_OF[self.library])
        return self.name.lower().startswith(name) and library in of
