"""The command `python -m parity_tests.situations`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from parity_tests import progress, requirements
from parity_tests.situations.case import KINDS, Case
from parity_tests.situations.compare import Outcome, check
from parity_tests.situations.draw import SHARED, draw
from parity_tests.situations.script import script, simplest

#: Of a kind that is rare, so many numbers are looked at for each case that is wanted.
LOOKED_AT = 1000
#: So many structures stay compiled.
COMPILED = 40
#: Of so many failures a simple form is looked for, which takes a while.
SIMPLIFIED = 3


@dataclass(frozen=True)
class Options:
    """Run random situations in both packages; compare with NumPy, print the worst errors by kind.

    Exit code 0: all within what their roundings allow. 1: a miss. 2: a crash, or nothing to
    compare. 130: interrupted.
    """

    cases: int = 300
    """How many; 10000 take about an hour."""
    seed: int = 0
    """Other seeds are other cases."""
    framework: Literal["jax", "torch", "both"] = "both"
    """One of them; the other is not imported."""
    kind: tuple[str, ...] = ()
    """Only cases that are all of these; --list prints them."""
    first: bool = False
    """Stop at the first case that fails."""
    scripts: Path | None = None
    """A folder for a script of every case that fails."""
    simplify: bool = True
    """Whether a failing case is made as simple as it can be before it is printed."""
    names: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print the kinds and stop."""


@dataclass
class Results:
    """What was found, by kind and framework."""

    cases: dict[tuple[str, str], int] = field(default_factory=dict)
    errors: dict[tuple[str, str, str], float] = field(default_factory=dict)
    failures: list[tuple[int, Case, str, Outcome]] = field(default_factory=list)
    total: int = 0
    unclear: int = 0

    def add(self, number: int, case: Case, framework: str, outcome: Outcome) -> None:
        """One case in one framework."""
        self.total += 1
        self.unclear += outcome.unclear
        if outcome.failed:
            self.failures.append((number, case, framework, outcome))
        for kind in case.kinds:
            self.cases[kind, framework] = self.cases.get((kind, framework), 0) + 1
            key = (kind, framework, case.structure.dtype)
            error = float("inf") if outcome.crash else outcome.error * (not outcome.far)
            self.errors[key] = max(self.errors.get(key, 0.0), error)


def run(arguments: list[str] | None = None) -> int:
    """Parse, run, print."""
    chosen = tyro.cli(Options, prog="python -m parity_tests.situations", args=arguments)
    for kind in chosen.kind:
        if kind not in KINDS:
            print(f"kind: got {kind!r}, expected some of {', '.join(KINDS)}", file=sys.stderr)
            return 2
    if chosen.names:
        print("\n".join(KINDS))
        return 0
    only = None if chosen.framework == "both" else chosen.framework
    frameworks, results = requirements.frameworks(only), Results()
    numbers = list(_numbers(chosen))
    if not numbers:
        wanted = ", ".join(chosen.kind)
        print(f"0 cases: got none that are {wanted}, expected some", file=sys.stderr)
        return 2
    interrupted = False
    try:
        with closing(progress.track(numbers, lambda number: f"case {number}")) as tracked:
            for number in tracked:
                case = draw(chosen.seed, number)
                for framework in frameworks:
                    results.add(number, case, framework, check(case, framework))
                if chosen.first and results.failures:
                    break
                _forget(number, frameworks)
        _print_failures(results, chosen)
    except KeyboardInterrupt:
        interrupted = True
    _print(results, frameworks)
    rest = f" of {len(numbers) * len(frameworks)}, interrupted" if interrupted else ""
    words = f"{results.total} comparisons{rest}, {len(results.failures)} out of their bounds, "
    print(f"{words}{results.unclear} whose bounds are too wide to tell")
    if interrupted:
        return 130
    return 2 if any(o.crash for *_, o in results.failures) else int(bool(results.failures))


def _numbers(chosen: Options) -> Iterator[int]:
    """The numbers of the cases that are wanted."""
    found = 0
    for number in range(chosen.cases * (LOOKED_AT if chosen.kind else 1)):
        if found < chosen.cases and set(chosen.kind) <= set(draw(chosen.seed, number).kinds):
            found += 1
            yield number


def _forget(number: int, frameworks: tuple[str, ...]) -> None:
    """Let go of what was compiled, now and then."""
    if "jax" in frameworks and number % (COMPILED * SHARED) == COMPILED * SHARED - 1:
        import jax

        jax.clear_caches()


def _print_failures(results: Results, chosen: Options) -> None:
    """Each with the script that reproduces it."""
    for count, (number, case, framework, outcome) in enumerate(results.failures):
        print(f"case {number} of seed {chosen.seed}, {framework}: {outcome.words}")
        if count < SIMPLIFIED:
            text = script(simplest(case, framework) if chosen.simplify else case, framework)
            print(f"\n{text}")
        if chosen.scripts is not None:
            chosen.scripts.mkdir(parents=True, exist_ok=True)
            path = chosen.scripts / f"seed_{chosen.seed}_case_{number}_{framework}.py"
            path.write_text(script(case, framework))


def _print(results: Results, frameworks: tuple[str, ...]) -> None:
    """The table."""
    table = Table(title="situations: the worst error, beside the change that training has made")
    table.add_column("kind")
    for framework in frameworks:
        for heading in ("cases", "failed", "float64", "float32"):
            table.add_column(f"{framework}\n{heading}", justify="right")
    for kind in KINDS:
        if any((kind, framework) in results.cases for framework in frameworks):
            cells = [cell for each in frameworks for cell in _cells(results, kind, each)]
            table.add_row(kind, *cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cells(results: Results, kind: str, framework: str) -> list[str]:
    failed = sum(f == framework and kind in case.kinds for _, case, f, _ in results.failures)
    errors = (results.errors.get((kind, framework, dtype)) for dtype in ("float64", "float32"))
    return [
        str(results.cases.get((kind, framework), 0)),
        str(failed),
        *("" if error is None else f"{error:.1e}" for error in errors),
    ]
