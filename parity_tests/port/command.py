"""The command `python -m parity_tests.port`."""

from __future__ import annotations

import importlib
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from parity_tests.port.errors import CannotCompare
from parity_tests.port.report import OK, Report

#: What a colour says.
COLORS = {"ok": "green", "departs": "red", "departs by convention": "yellow"}


@dataclass(frozen=True)
class Options:
    """Compare a Flax model with a PyTorch model; say where they depart, and why.

    A model is given as package.module:name, an instance or a function or class without arguments
    that makes one. Exit code 0: they agree. 1: something departs. 2: they cannot be compared. 130:
    interrupted.

    The inputs are described in TOML, a table for each, in the order of the positional ones; named
    inputs are those with keyword = true:

        [image]
        shape = [2, 3, 32, 32]            # as PyTorch takes it; floats are drawn from N(0, 1)

        [tokens]
        shape = [2, 16]
        integers = 100                    # below 100; or booleans = true; or value = 0.0
        keyword = true
        layout = "same"                   # or "channels", "auto"; or file = "x.npy" for numbers
    """

    flax_model: Annotated[str, tyro.conf.Positional] = ""
    """package.module:name of the model in linen or nnx."""
    torch_model: Annotated[str, tyro.conf.Positional] = ""
    """package.module:name of the model in PyTorch."""
    inputs: Path | None = None
    """A TOML file that describes the inputs."""
    weights: Path | None = None
    """A TOML file of names, "path in Flax" = "name in PyTorch"; a table [flattened] with shapes."""
    variables: str = ""
    """package.module:name of variables of linen, or of a function that makes them."""
    given: bool = False
    """Whether both sides have their weights already, which are compared, too."""
    reference: Literal["torch", "flax"] = "torch"
    """Whose weights are copied, and whose layers' inputs are fed to both."""
    dtype: Literal["auto", "float64", "float32"] = "auto"
    """In which both compute."""
    outputs: tuple[str, ...] = ()
    """Names of the outputs that are compared; all by default."""
    steps: int = 3
    """Of the optimizers, and passes of the states."""
    strict: bool = False
    """Whether a departure by convention counts."""
    seed: int = 0
    """Of everything that is drawn."""
    html: Path | None = None
    """Write the report as a page."""
    junit: Path | None = None
    """Write the report as JUnit XML."""
    self_test: bool = False
    """Plant faults in networks of our own, see each found and named, try correct pairs; stop."""
    quick: bool = False
    """With --self-test: one fault of each cause, few correct pairs."""


def run(arguments: list[str] | None = None) -> int:
    """Parse, compare, print."""
    chosen = tyro.cli(Options, prog="python -m parity_tests.port", args=arguments)
    if chosen.self_test:
        from parity_tests.port import self_test  # it brings models of its own

        return self_test.run(quick=chosen.quick)
    try:
        report = _verify(chosen)
        _write(chosen, report)
    except CannotCompare as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # of anyone's code; the call of `verify` shows where
        print(
            f"cannot compare: got {type(error).__name__}: {error}, expected none; "
            "parity_tests.port.verify(...) in Python shows where it comes from",
            file=sys.stderr,
        )
        return 2
    show(report, Console(width=None if sys.stdout.isatty() else 160))
    return 0 if report.agree else 1


def _verify(chosen: Options) -> Report:
    from parity_tests.port.verify import verify

    if not (chosen.flax_model and chosen.torch_model and chosen.inputs):
        raise CannotCompare(
            "models: got too few arguments, expected package.module:flax_model, "
            "package.module:torch_model and --inputs FILE; or --self-test"
        )
    inputs, layout = read_inputs(chosen.inputs, chosen.seed)
    names, flattened = _names(chosen.weights) if chosen.weights else (None, None)
    return verify(
        load(chosen.flax_model, "flax_model"),
        load(chosen.torch_model, "torch_model"),
        inputs,
        "given" if chosen.given else names or "auto",
        reference=chosen.reference,
        variables=load(chosen.variables, "variables") if chosen.variables else None,
        layout=layout,
        outputs=chosen.outputs or None,
        flattened=flattened,
        dtype=chosen.dtype,
        train_steps=chosen.steps,
        strict=chosen.strict,
        seed=chosen.seed,
    )


def load(name: str, argument: str) -> Any:
    """The object at package.module:name; a class or a function is called."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise CannotCompare(f"{argument}: got {name!r}, expected package.module:name")
    sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
        return value() if _makes(value) else value
    except Exception as error:  # of anyone's code
        raise CannotCompare(
            f"{argument}: {name!r} raised {type(error).__name__}: {error}; expected a model, or a "
            "function or class without arguments that makes one"
        ) from error
    finally:
        sys.path.pop(0)


def _makes(value: Any) -> bool:
    """Whether it is called to get the model: a class, or a function, and no model."""
    return isinstance(value, type) or type(value).__name__ in ("function", "partial")


def read_inputs(path: Path, seed: int) -> tuple[Any, dict[str, str]]:
    """(inputs as `verify` takes them, the layout of each).

    Raises:
        CannotCompare: for a file or a table that cannot be read.
    """
    tables = _toml(path, "inputs")
    generator = np.random.default_rng(seed)
    positional: list[Any] = []
    keyword: dict[str, Any] = {}
    layout: dict[str, str] = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise CannotCompare(
                f"inputs: got {table!r} for {name!r} in {path}, expected a table with a shape"
            )
        value = _drawn(name, table, path, generator)
        if table.get("keyword"):
            keyword[name] = value
        else:
            positional.append(value)
        key = name if table.get("keyword") else str(len(positional) - 1)
        if isinstance(value, np.ndarray):
            layout[key] = table.get("layout", "auto")
    if positional and keyword:
        raise CannotCompare(
            f"inputs: got positional and named inputs in {path}, expected one kind; name all of "
            "them with keyword = true"
        )
    return (keyword or tuple(positional)), layout


def _drawn(name: str, table: dict[str, Any], path: Path, generator: np.random.Generator) -> Any:
    known = {"shape", "integers", "booleans", "value", "file", "keyword", "layout"}
    if unknown := table.keys() - known:
        raise CannotCompare(
            f"inputs: got {sorted(unknown)} for {name!r}, expected some of {sorted(known)}"
        )
    if "file" in table:
        try:
            return np.load(path.parent / table["file"])
        except (OSError, ValueError) as error:
            raise CannotCompare(f"inputs: {name!r} cannot be read ({error})") from error
    shape = table.get("shape")
    if shape is None and "value" in table:
        return table["value"]
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise CannotCompare(
            f"inputs: got shape {shape!r} for {name!r}, expected a list of positive integers"
        )
    if "integers" in table:
        return generator.integers(0, table["integers"], shape)
    if table.get("booleans"):
        return generator.random(shape) < 0.5
    if "value" in table:
        return np.full(shape, table["value"])
    return generator.standard_normal(shape)


def _names(path: Path) -> tuple[dict[str, str] | None, dict[str, list[int]] | None]:
    tables = _toml(path, "weights")
    flattened = tables.pop("flattened", None)
    for key, value in tables.items():
        if not isinstance(value, str):
            raise CannotCompare(
                f'weights: got {value!r} for {key!r} in {path}, expected "path in Flax" = '
                '"name in PyTorch"'
            )
    return tables or None, flattened


def _toml(path: Path, argument: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CannotCompare(f"{argument}: {path} cannot be read ({error})") from error


def _write(chosen: Options, report: Report) -> None:
    from parity_tests.port.html import html
    from parity_tests.port.junit import junit

    title = f"{chosen.flax_model} = {chosen.torch_model}?"
    for path, text in ((chosen.html, html), (chosen.junit, junit)):
        if path is not None:
            try:
                path.write_text(text(report, title))
            except OSError as error:
                raise CannotCompare(f"{path} cannot be written ({error})") from error


def show(report: Report, console: Console) -> None:
    """The report on a terminal."""
    from parity_tests.port.text import group_status, grouped, text

    table = Table(title=None)
    for heading, justify in (
        ("comparison", "left"),
        ("arrays", "right"),
        ("worst error", "right"),
        ("gate", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, checks in grouped(report).items():
        worst = max(checks, key=lambda check: check.distance.error)
        status = group_status(checks)
        where = "" if status == OK else f", most at {worst.subject}"
        table.add_row(
            name,
            str(len(checks)),
            f"{worst.distance.error:.1e}",
            f"{worst.gate:.0e}",
            f"[{COLORS[status]}]{status}[/]{where}",
        )
    head, _, rest = text(report).partition("\n\n")
    console.print(head, markup=False, style="bold", soft_wrap=True)
    console.print(table)
    console.print(rest.partition("\n\n")[2], markup=False, soft_wrap=True, highlight=False)
