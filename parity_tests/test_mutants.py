"""Every planted bug is caught, as a miss and not as a crash; what has none passes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import jax
import pytest

from parity_tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = ("jax", "torch")
PLANTED = [
    (framework, mutant)
    for mutant in MUTANTS
    for framework in FRAMEWORKS
    if getattr(mutant, framework) is not None
]

#: So many are tried for each bug, and so many without one.
SITUATIONS, WITHOUT = 30, 2

Command = Callable[..., tuple[int, str]]


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


_make_context = jax.make_user_context
_CONTEXTS: dict[tuple[str, int], Any] = {}


def context_of_a_place(default_value: Any = None) -> Any:
    """`jax.make_user_context`, once for each line that calls it: JAX's caches know every one."""
    caller = sys._getframe(1)
    place = caller.f_code.co_filename, caller.f_lineno
    if place not in _CONTEXTS:
        _CONTEXTS[place] = _make_context(default_value)
    return _CONTEXTS[place]


@contextmanager
def imported_anew(framework: str, mutant: Mutant | None) -> Iterator[None]:
    """Import the package a second time, with a bug or without; then the first comes back.

    In one process: what JAX has compiled for one bug serves the next, and nobody waits for imports
    of the frameworks.
    """
    package = f"{framework}norm"

    def ours() -> dict[str, ModuleType]:
        return {
            n: m for n, m in sys.modules.items() if n.split(".")[0] in (package, "parity_tests")
        }

    planted = []
    if mutant is not None:  # first: it may not fit the file
        file = ROOT / package / mutant.file_in(framework)
        planted = [PlantedFinder(file, *getattr(mutant, framework))]
    saved, finders = ours(), sys.meta_path[:]
    for name in saved:
        del sys.modules[name]
    sys.meta_path[:0] = planted
    jax.make_user_context = context_of_a_place
    try:
        yield
    finally:
        jax.make_user_context = _make_context
        sys.meta_path[:] = finders
        for name in ours():
            del sys.modules[name]
        sys.modules |= saved


@pytest.fixture(autouse=True, scope="module")
def _forget() -> Iterator[None]:
    """The programs of fifty packages stay no longer than these tests."""
    yield
    jax.clear_caches()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m parity_tests --quick` in this process: (its exit code, what it prints)."""

    def run(framework: str, mutant: Mutant | None, *options: str) -> tuple[int, str]:
        with imported_anew(framework, mutant):
            from parity_tests.__main__ import main

            code = main(["--quick", "--only", framework, *options])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def situations(capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m parity_tests.situations` likewise, of the kinds that a bug names."""

    def run(framework: str, mutant: Mutant | None, *kinds: str) -> tuple[int, str]:
        with imported_anew(framework, mutant):
            from parity_tests.situations.command import run

            count = str(WITHOUT if mutant is None else SITUATIONS)
            few = ["--cases", count, "--framework", framework, "--kind", *kinds]
            code = run([*few, "--first", "--no-simplify"])
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_a_bug_the_rows_pass(command: Command, framework: str) -> None:
    """What is imported anew is as good as the original; that all rows pass, the command says."""
    code, words = command(framework, None, "--rows", "scales")
    assert code == 0, words
    assert "0 out of their gate" in words


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_a_bug_the_situations_pass(situations: Command, framework: str) -> None:
    """Those of the last bug; hundreds of others do in tests of their own."""
    code, words = situations(framework, None, *MUTANTS[-1].situations)
    assert code == 0, words
    assert "0 out of their bounds" in words


@pytest.mark.parametrize(
    ("framework", "mutant"), PLANTED, ids=[f"{m.name}, {framework}" for framework, m in PLANTED]
)
def test_a_bug_is_caught(
    command: Command, situations: Command, mutant: Mutant, framework: str
) -> None:
    """Exit code 1 and a miss in words."""
    if mutant.situations:
        code, words = situations(framework, mutant, *mutant.situations)
        assert "1 out of their bounds" in words, words
    else:
        code, words = command(framework, mutant, "--first", "--rows", mutant.rows)
        assert "miss: " in words, words
    assert code == 1, words
