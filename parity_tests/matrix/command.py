"""The command `python -m parity_tests`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from parity_tests import implementations, progress, requirements
from parity_tests.cases import make, standard
from parity_tests.matrix import build, render
from parity_tests.normalizers import comparisons
from parity_tests.normalizers import implementations as normalizers
from parity_tests.numerics import exact, on_device


@dataclass(frozen=True)
class Options:
    """Compare both packages with the oracle and with each other; print the worst errors.

    Exit code 0: all within their gates. 1: a miss. 2: a crash, or nothing to compare. 130:
    interrupted.
    """

    quick: bool = False
    """One shape, fewer seeds."""
    first: bool = False
    """Stop at the first comparison that misses."""
    rows: str = ""
    """Only rows whose name begins so, in upper or lower case."""
    only: Literal["jax", "torch"] | None = None
    """One framework; the other is not imported."""
    device: str = "cpu"
    """Where both frameworks compute: cpu, cuda, tpu."""
    names: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print the names of the rows and stop."""


def run(arguments: list[str] | None = None) -> int:
    """Parse, compare, print."""
    chosen = tyro.cli(Options, prog="python -m parity_tests", args=arguments)
    every: list[tuple[str, Any]] = [
        *standard.recipes(quick=chosen.quick),
        *comparisons.recipes(quick=chosen.quick),
    ]
    recipes = [each for each in every if each[0].lower().startswith(chosen.rows.lower())]
    names = list(dict.fromkeys(row for row, _ in recipes))
    if not recipes:
        near = ", ".join(map(repr, _near(chosen.rows.lower(), list(dict(every)))))
        return _nothing(f"the beginning of a row, for example {near}; --list prints all", chosen)
    if chosen.names:
        print("\n".join(names))
        return 0
    frameworks = requirements.frameworks(chosen.only)
    with (
        exact(frameworks),
        on_device(frameworks, chosen.device),
        closing(progress.track(recipes, lambda each: each[0])) as tracked,
    ):
        result = build.build(tracked, _comparisons(frameworks), first=chosen.first)
    if not (result.comparisons or result.crashes or result.interrupted):
        return _nothing(f"rows that {' or '.join(frameworks)} has", chosen)
    render.render(result, Console(width=None if sys.stdout.isatty() else 160))
    return result.exit_code


def _comparisons(frameworks: tuple[str, ...]) -> Callable[[Any], Iterator[build.Comparison]]:
    """What is compared for a recipe: arguments of `make` for the rule, a case of a normalizer."""
    of_the_rule, of_normalizers = implementations.load(frameworks), normalizers.load(frameworks)

    def compare(recipe: Any) -> Iterator[build.Comparison]:
        if isinstance(recipe, dict):
            return build.of_the_rule(make(**recipe), of_the_rule)
        return comparisons.of_normalizers(recipe, of_normalizers)

    return compare


def _nothing(expected: str, chosen: Options) -> int:
    """Say that nothing was compared, and what would have been."""
    print(f"rows: got {chosen.rows!r}, expected {expected}\n0 comparisons", file=sys.stderr)
    return 2


def _near(wanted: str, names: list[str]) -> list[str]:
    """The names that were perhaps meant, or some."""
    by_name = {name.lower(): name for name in names}
    near = [name for name in by_name if wanted in name]
    near += get_close_matches(wanted, by_name, n=6, cutoff=0.3)
    return [by_name[name] for name in dict.fromkeys(near)] or names[:6]
