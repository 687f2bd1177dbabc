"""The command `python -m parity_tests.models`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from parity_tests import progress, requirements
from parity_tests.models.outcome import Outcome
from parity_tests.numerics import exact
from parity_tests.tolerances import GATE

#: What a network's library belongs to, and what its networks import besides.
FRAMEWORK_OF = {"torch": "torch", "linen": "jax", "nnx": "jax"}
EXTRAS = {"torch": ("transformers",), "jax": ()}


@dataclass(frozen=True)
class Options:
    """Convert whole networks; compare with the framework, bit for bit, and with the oracle.

    Exit code 0: all within their gates. 1: a miss. 2: a crash, or nothing to measure. 130:
    interrupted.
    """

    only: tuple[str, ...] = ()
    """Only networks whose NAME begins so; with /FRAMEWORK, only those of torch, linen, nnx or jax
    (both). In upper or lower case."""
    names: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print the names of the networks and stop."""


class Network(NamedTuple):
    """What can be measured."""

    name: str
    library: str
    measure: Callable[[], Outcome]

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


def run(arguments: list[str] | None = None) -> int:
    """Parse, measure, print."""
    chosen = tyro.cli(Options, prog="python -m parity_tests.models", args=arguments)
    every = _networks(requirements.frameworks())
    for wanted in chosen.only:
        if not any(network.matches(wanted) for network in every):
            names = ", ".join(network.label for network in every)
            print(f"only: got {wanted!r}, expected one of {names}", file=sys.stderr)
            return 2
    some = [n for n in every if not chosen.only or any(map(n.matches, chosen.only))]
    if chosen.names:
        print("\n".join(network.label for network in some))
        return 0
    for framework in {FRAMEWORK_OF[network.library] for network in some}:
        requirements.require(*EXTRAS[framework])
    outcomes, interrupted = [], False
    try:
        with closing(progress.track(some, lambda network: network.label)) as tracked:
            for network in tracked:
                outcomes.append(_measured(network))
    except KeyboardInterrupt:
        interrupted = True
    _print(outcomes, len(some))
    if interrupted:
        return 130
    return 2 if any(o.report is None for o in outcomes) else int(any(o.miss for o in outcomes))


def _networks(frameworks: tuple[str, ...]) -> list[Network]:
    modules = [import_module(f"parity_tests.models.{framework}") for framework in frameworks]
    return [Network(*each) for module in modules for each in module.networks()]


def _measured(network: Network) -> Outcome:
    """What was measured; an error is an outcome too."""
    with exact((FRAMEWORK_OF[network.library],)):
        try:
            return network.measure()
        except Exception as error:  # a table with a hole says more than a traceback
            return Outcome(network.name, network.library, None, unequal=[f"crash: {error!r}"])


def _print(outcomes: list[Outcome], wanted: int) -> None:
    """The table, then the counts."""
    table = Table(title=f"whole networks, float64, against the oracle (gate {GATE['float64']:.0e})")
    counts = ("layers", "converted", "deferred", "unresolved", "left alone")
    for heading in ("network", *counts, "worst error", "where", "not bitwise", "seconds"):
        table.add_column(heading)
    for each in outcomes:
        numbers = [""] * len(counts)
        if each.report is not None:
            report = each.report
            parts = (report.rows, report.converted, report.deferred, report.unresolved, report.left)
            numbers = [str(len(part)) for part in parts]
        table.add_row(
            f"{each.name}/{each.library}",
            *numbers,
            f"{each.error:.1e}",
            each.where,
            ", ".join(each.unequal),
            f"{each.seconds:.1f}",
            style="red" if each.miss else None,
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    rest = f" of {wanted}, interrupted" if len(outcomes) < wanted else ""
    print(f"{len(outcomes)} networks{rest}, {sum(o.miss for o in outcomes)} with a miss")
