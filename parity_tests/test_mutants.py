"""Every planted bug is caught, as a miss and not as a crash; what has none passes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest
from rich.console import Console

from parity_tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = ("jax", "torch")
PLANTED = [
    (framework, mutant)
    for mutant in MUTANTS
    for framework in FRAMEWORKS
    if getattr(mutant, framework) is not None
]


class PlantedFinder(SourceFileLoader):
    """Finds modules as ever, but one of them has a bug (and no bytecode)."""

    def __init__(self, file: Path, old: str, new: str) -> None:
        """Plant `new` for `old`, which must occur in the file exactly once."""
        assert file.read_text().count(old) == 1, f"{file} must hold {old!r} exactly once"
        super().__init__("", str(file))
        self.old, self.new = old, new

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """As the finder of any path, with this loader for that file."""
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin == self.path:
            self.name = name
            spec.loader = self
        return spec

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source with the bug."""
        source = Path(self.path).read_text().replace(self.old, self.new)
        return compile(source, self.path, "exec", dont_inherit=True)


@contextmanager
def imported_anew(framework: str, mutant: Mutant | None) -> Iterator[ModuleType]:
    """The matrix on a second import of the package, with a bug or without; the first comes back.

    In one process: what JAX has compiled for one bug serves the next, and nobody waits for imports
    of the frameworks.
    """
    package = f"{framework}norm"

    def of_ours() -> dict[str, ModuleType]:
        return {
            n: m for n, m in sys.modules.items() if n.split(".")[0] in (package, "parity_tests")
        }

    saved, finders = of_ours(), sys.meta_path[:]
    for name in saved:
        del sys.modules[name]
    if mutant is not None:
        file = ROOT / package / mutant.file_in(framework)
        sys.meta_path.insert(0, PlantedFinder(file, *getattr(mutant, framework)))
    try:
        from parity_tests import matrix

        yield matrix
    finally:
        sys.meta_path[:] = finders
        for name in of_ours():
            del sys.modules[name]
        sys.modules |= saved


def printed(framework: str, mutant: Mutant | None, rows: str) -> tuple[int, str]:
    """The exit code and the words of some rows of the quick matrix of one framework."""
    with imported_anew(framework, mutant) as matrix:
        from parity_tests import implementations, numerics, standard

        with numerics.exact((framework,)):
            cases = standard.standard(quick=True, rows=rows)
            columns = implementations.load((framework,))
            result = matrix.build(cases, columns, first=mutant is not None)
        output = io.StringIO()
        matrix.render(result, Console(file=output, width=160))
    return result.exit_code, output.getvalue()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("rows", sorted({mutant.rows for mutant in MUTANTS} - {""}) + ["scales"])
def test_without_a_bug_the_rows_pass(framework: str, rows: str) -> None:
    """What is imported anew is as good as the original."""
    code, words = printed(framework, None, rows)
    assert code == 0, words


@pytest.mark.parametrize(
    ("framework", "mutant"), PLANTED, ids=[f"{m.name}, {framework}" for framework, m in PLANTED]
)
def test_a_bug_is_caught(mutant: Mutant, framework: str) -> None:
    """Exit code 1 and a miss in words."""
    code, words = printed(framework, mutant, mutant.rows)
    assert "miss: " in words, words
    assert code == 1, words
