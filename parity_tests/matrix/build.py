"""The whole matrix: case families times implementations, the worst error against its gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from parity_tests.cases import Case
from parity_tests.implementations import Implementation
from parity_tests.matrix import compare
from parity_tests.matrix.compare import Finding

#: The column in which the two frameworks are compared without the oracle in between.
DIRECT = "jax = torch"

#: What a comparison is made from.
Recipe = TypeVar("Recipe")


class Comparison(NamedTuple):
    """One cell's share: the column, the case in words, and what finds the errors."""

    column: str
    words: str
    run: Callable[[], list[Finding]]


@dataclass
class Matrix:
    """Every finding, by row (case family) and column (implementation)."""

    findings: dict[tuple[str, str], list[Finding]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    crashes: int = 0
    interrupted: bool = False

    @property
    def misses(self) -> int:
        """How many quantities are further off than they may be."""
        return sum(f.miss for found in self.findings.values() for f in found)

    @property
    def comparisons(self) -> int:
        """How many quantities were compared."""
        return sum(len(found) for found in self.findings.values())

    @property
    def exit_code(self) -> int:
        """0: all within their gates; 1: a miss; 2: an implementation raised; 130: interrupted."""
        if self.interrupted:
            return 130
        return 2 if self.crashes else int(self.misses > 0)

    def record(self, row: str, comparison: Comparison) -> None:
        """Run one comparison and file what it finds, also if it raises."""
        column, words, run = comparison
        found = self.findings.setdefault((row, column), [])
        try:
            new = run()
        except Exception as error:  # a matrix with a hole says more than a traceback
            self.crashes += 1
            self.messages.append(f"crash: {column}, {row}, {words}: {error!r}")
            return
        found += new
        for f in compare.misses(new):
            off = f"{f.quantity} is off by {f.error:.1e} > {f.gate:.0e}"
            self.messages.append(f"miss: {column}, {row}, {words}: {off}")


def build(
    recipes: Iterable[tuple[str, Recipe]],
    comparisons: Callable[[Recipe], Iterable[Comparison]],
    *,
    first: bool = False,
) -> Matrix:
    """Compare everything with its oracle, and the two frameworks with each other.

    Ctrl-C ends it with what was compared until then.

    Args:
        recipes: what makes the cases, each with the row it belongs to.
        comparisons: what is compared for one of them; each is run before the next is asked for.
        first: stop after the first comparison that misses.
    """
    matrix = Matrix()
    try:
        for row, recipe in recipes:
            for comparison in comparisons(recipe):
                matrix.record(row, comparison)
                if first and matrix.misses:
                    return matrix
    except KeyboardInterrupt:
        matrix.interrupted = True
    return matrix


def knobs_in_words(case: Case) -> str:
    """The case in words: its gate and every knob that is not at its default."""
    default = vars(type(case.knobs)())
    changed = [
        f"{name}={value}" for name, value in vars(case.knobs).items() if value != default[name]
    ]
    return " ".join([f"gate={case.gate}", *changed])


def of_the_rule(case: Case, implementations: list[Implementation]) -> Iterator[Comparison]:
    """Every implementation with the oracle, and the two functional forms with each other."""
    words = knobs_in_words(case)
    able = [each for each in implementations if each.supports(case)]
    for each in able:
        yield Comparison(each.name, words, partial(compare.examine, case, each))
    functional = [each for each in able if each.name.endswith("functional")]
    if len(functional) == 2:
        yield Comparison(DIRECT, words, partial(_direct, case, *functional))


def _direct(case: Case, one: Implementation, other: Implementation) -> list[Finding]:
    """Two implementations without the oracle in between."""
    return compare.gradients(case, one.gradients(case), other.gradients(case))
