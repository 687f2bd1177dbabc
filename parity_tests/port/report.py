"""What a comparison found, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from parity_tests.port.measure import Distance

OK, DEPARTS, CONVENTION = "ok", "departs", "departs by convention"


@dataclass(frozen=True)
class Check:
    """One comparison of two arrays.

    Attributes:
        name: what was compared: "forward, eval mode", "gradients, train mode", ...
        subject: of what: an output, a parameter, an input, a state, in the words of Flax.
        distance: how far the other side is from the reference.
        gate: what its error may be.
        convention: why the two differ though both are right, if that is so.
    """

    name: str
    subject: str
    distance: Distance
    gate: float
    convention: str = ""

    @property
    def status(self) -> str:
        """One of "ok", "departs" and "departs by convention"."""
        if self.distance.error <= self.gate:
            return OK
        return CONVENTION if self.convention else DEPARTS


@dataclass(frozen=True)
class Finding:
    """A likely cause of a departure.

    Attributes:
        name: of the cause, such as "epsilon".
        confirmed: whether the two sides agree once this one thing is repaired.
        text: both sides' values, and what it means.
        mend: what to do.
        flax: the layer in Flax, if the cause is of one.
        torch: the layer in PyTorch.
        convention: whether it is a difference of the frameworks themselves.
        error: what is left after the repair.
    """

    name: str
    confirmed: bool
    text: str
    mend: str
    flax: str = ""
    torch: str = ""
    convention: bool = False
    error: float = float("nan")

    def __str__(self) -> str:
        sure = "confirmed" if self.confirmed else "suspected"
        return f"{self.name} ({sure}): {self.text}; {self.mend}"


@dataclass
class Layer:
    """A layer that both sides have, fed with what the reference's layer reads.

    Attributes:
        flax: its path in Flax, with the number of the call if there are several.
        torch: its path in PyTorch.
        kinds: the names of its classes.
        departs: what departs, with both numbers; empty if nothing does.
        findings: likely causes.
    """

    flax: str
    torch: str
    kinds: tuple[str, str] = ("", "")
    departs: list[Check] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> str:
        """One of "ok", "departs" and "departs by convention"."""
        if not self.departs:
            return OK
        return DEPARTS if any(c.status == DEPARTS for c in self.departs) else CONVENTION


@dataclass(frozen=True)
class Paired:
    """A row of the table of pairs."""

    flax: str
    torch: str
    sureness: str
    shapes: str


@dataclass
class Report:
    """The result of `verify`.

    Attributes:
        framework: of the Flax side, "linen" or "nnx".
        reference: "torch" or "flax": whose weights and inputs of layers were used.
        dtype: in which both computed.
        checks: every comparison.
        pairs: which layer is which.
        layers: all layers in the order of the reference's calls; they were compared one by one
            only if something departs.
        findings: causes that are of no single layer.
        notes: what a reader should know.
        strict: whether a departure by convention counts.
        first_key: the paths of the first layer that departs, in Flax and in PyTorch.
    """

    framework: str
    reference: str
    dtype: str
    checks: list[Check] = field(default_factory=list)
    pairs: list[Paired] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    strict: bool = False
    first_key: tuple[str, str] | None = None

    @property
    def departures(self) -> list[Check]:
        """The comparisons that fail."""
        return [c for c in self.checks if c.status == DEPARTS or (self.strict and c.convention)]

    @property
    def agree(self) -> bool:
        """Whether nothing departs (but by convention, unless strict)."""
        return not self.departures

    @property
    def first(self) -> Layer | None:
        """The first layer that departs."""
        return next(
            (layer for layer in self.layers if (layer.flax, layer.torch) == self.first_key), None
        )

    @property
    def causes(self) -> list[Finding]:
        """All causes that were found: of the first layer that departs, of others, of none."""
        of_layers = [finding for layer in self.layers for finding in layer.findings]
        return [*of_layers, *self.findings]

    def __str__(self) -> str:
        from parity_tests.port.text import text

        return text(self)
