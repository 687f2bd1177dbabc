"""Each package stands without the other's framework, and says which extra it needs."""

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


CASES = [("jaxnorm", ["torch", "torchnorm"]), ("torchnorm", ["jax", "flax", "optax", "jaxnorm"])]


@pytest.mark.parametrize(("package", "foreign"), CASES)
def test_import_loads_nothing_of_the_other(package, foreign):
    found = f"print(sorted(set({foreign}) & set(sys.modules)))"
    # The second line: this test can fail.
    done = run(f"import sys, {package}; {found}; sys.modules[{foreign[-1]!r}] = None; {found}")
    assert done.stdout.splitlines() == ["[]", f"[{foreign[-1]!r}]"], done.stderr


@pytest.mark.parametrize(
    ("package", "missing"), [("jaxnorm", "jax"), ("jaxnorm", "flax"), ("torchnorm", "torch")]
)
def test_without_the_extra_the_error_names_it(package, missing):
    # None in sys.modules is how an import is made to fail as if nothing were installed.
    done = run(f"import sys; sys.modules[{missing!r}] = None; import {package}")
    assert done.returncode != 0
    extra = {"jaxnorm": "jax", "torchnorm": "torch"}[package]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {package}: got no module named")
    assert f"pip install 'neuronwise-norm[{extra}]'" in last


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_oracle_needs_no_framework(framework):
    done = run(f"import sys; sys.modules[{framework!r}] = None; import parity_tests.oracle")
    assert done.returncode == 0, done.stderr
