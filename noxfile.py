"""Lowest, pinned and newest versions, the quick suite in each: `nox`, or `nox --session lowest`.

Each environment has one framework and is made anew. Python 3.12: `nox --force-python 3.12`.
"""

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"

#: What the quick suite imports beside the framework.
TOOLS = ("hypothesis", "ml_dtypes", "numpy", "pytest", "pytest-xdist", "rich", "tyro")
#: The tests that touch most of what a framework might change.
TESTS = {
    "jax": (
        "jaxnorm/tests/optim/test_in_neuron_coordinates.py",
        "jaxnorm/tests/optim/test_parallel.py",
        "jaxnorm/tests/conversion/test_convert.py",
    ),
    "torch": (
        "torchnorm/tests/optim/test_in_neuron_coordinates.py",
        "torchnorm/tests/test_conditions.py",
        "torchnorm/tests/conversion/test_gates.py",
    ),
}


#: As in conftest.py: the quick matrix compiles hundreds of programs to run each once.
FAST = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
}


def quick_suite(session: nox.Session, framework: str, *constraints: str) -> None:
    """The matrix, every example in a docstring, and a few tests, with one framework installed."""
    session.install(*constraints, "--editable", f".[{framework}]", *TOOLS)
    session.run("python", "-m", "pip", "list")
    session.run("python", "-m", "parity_tests", "--quick", "--only", framework, env=FAST)
    package = Path(f"{framework}norm")
    examples = [str(p) for p in package.iterdir() if p.suffix in ("", ".py") and p.name != "tests"]
    doctest = ("--doctest-modules",)  # (the pages want more packages)
    session.run("python", "-m", "pytest", "-q", *doctest, *examples, *TESTS[framework])


@nox.session(python="3.11")
@nox.parametrize("framework", sorted(TESTS))
def lowest(session: nox.Session, framework: str) -> None:
    """The oldest versions that the extras admit."""
    quick_suite(session, framework, "--constraint", "constraints-lowest.txt")


@nox.session(python="3.11")
@nox.parametrize("framework", sorted(TESTS))
def pinned(session: nox.Session, framework: str) -> None:
    """The versions of the README's commands and of CI."""
    quick_suite(session, framework, "--constraint", "constraints.txt")


@nox.session(python="3.13")
@nox.parametrize("framework", sorted(TESTS))
def newest(session: nox.Session, framework: str) -> None:
    """Whatever the index has today."""
    quick_suite(session, framework)
