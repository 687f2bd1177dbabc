"""What is shipped: a wheel without tests of ours; extras that declare what is imported."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"jaxnorm", "torchnorm", "parity_tests", "experiments"}
#: Packages whose modules are called otherwise.
MODULES = {
    "markdown-it-py": "markdown_it",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
#: Declared though nothing here imports them: what needs them instead.
NEEDED_BY_OTHERS = {
    "PIL",  # scikit-learn, for its photograph
    "transformers",  # imported by name, in the models of parity_tests
    "accelerate",  # the pages' examples
    "lightning",
    "hatchling",  # started as a program, below
    "equinox",  # imported by name, where they are installed
    "dm-haiku",
    "pytest-xdist",  # the options of pytest in pyproject.toml
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def imports(source: str) -> set[str]:
    """The names of the modules that some source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def declared(extra: str) -> set[str]:
    """The modules that an extra declares, those of the extras in it left out."""
    names = (re.split(r"[<>=\[]", text)[0] for text in PROJECT["optional-dependencies"][extra])
    return {MODULES.get(name, name) for name in names} - {PROJECT["name"]}


def imported(files: list[Path]) -> set[str]:
    """The packages that files import, without ours and Python's own."""
    names = {name.split(".")[0] for file in files for name in imports(file.read_text())}
    return names - OURS - sys.stdlib_module_names


def sources(package: str, *, tests: bool) -> list[Path]:
    """Its files: all, or those that are no tests."""
    files = (ROOT / package).rglob("*.py")
    return [f for f in files if tests or "tests" not in f.relative_to(ROOT).parts]


def test_no_tests_of_ours(wheel):
    names = wheel.namelist()
    assert [n for n in names if re.search(r"(^|/)(tests/|test_|conftest|mutants|steps/)", n)] == []
    assert not any(name.startswith("experiments") for name in names)


def test_what_a_user_and_a_type_checker_look_for(wheel):
    names = wheel.namelist()
    assert {"jaxnorm/py.typed", "torchnorm/py.typed"} <= set(names)
    assert {"parity_tests/__main__.py", "parity_tests/golden/manifest.json"} <= set(names)
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    text = wheel.read(metadata).decode()
    assert (ROOT / "README.md").read_text().strip() in text
    assert text.count("Provides-Extra: ") == len(PROJECT["optional-dependencies"])
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_all_that_it_imports_of_ours_is_in_it(wheel):
    names = set(wheel.namelist())
    for name in (n for n in names if n.endswith(".py")):
        for module in imports(wheel.read(name).decode()):
            if module.split(".")[0] not in OURS:
                continue
            parts = module.split(".")  # the last may be a name in the module
            paths = ["/".join(parts[:n]) for n in (len(parts), len(parts) - 1) if n]
            assert any({f"{p}.py", f"{p}/__init__.py"} & names for p in paths), (name, module)


def test_console_scripts_exist():
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        done = subprocess.run(
            [sys.executable, "-c", f"from {module} import {function}"], cwd=ROOT, check=False
        )
        assert done.returncode == 0, target


@pytest.mark.parametrize(
    ("extra", "package"), [("jax", "jaxnorm"), ("torch", "torchnorm"), ("experiments",) * 2]
)
def test_extras_declare_what_is_imported(extra, package):
    expected = imported(sources(package, tests=False)) - NEEDED_BY_OTHERS
    given = declared(extra)
    if extra == "experiments":  # the bench times PyTorch too, where it is installed
        given |= declared("jax") | declared("torch")
    assert expected == given - NEEDED_BY_OTHERS


def test_the_extra_of_the_tests():
    files = [f for package in OURS - {"experiments"} for f in sources(package, tests=True)]
    given = declared("jax") | declared("torch") | declared("test")
    assert imported(files) - NEEDED_BY_OTHERS == given - NEEDED_BY_OTHERS
