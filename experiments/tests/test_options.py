"""The options: what cannot work is refused with a reason; what is left open is filled in."""

import pkgutil
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from experiments.__main__ import main
from experiments.errors import ConfigError
from experiments.jobs import JOBS
from experiments.methods import METHODS
from experiments.options import CompareConfig, MethodName
from experiments.report.drawing import STYLES
from experiments.studies.options import DecayOptions
from experiments.workloads import WORKLOADS


def test_method_names_agree() -> None:
    """Command line, registry and plots know the same methods; no two are drawn alike."""
    assert get_args(MethodName) == tuple(METHODS) == tuple(STYLES)
    for key in ("color", "linestyle", "marker"):
        assert len({str(style[key]) for style in STYLES.values()}) == len(METHODS)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_open_options_come_from_the_workload(name: str) -> None:
    """All of them are filled in; what was given stays."""
    defaults = WORKLOADS[name].defaults
    config = CompareConfig(workload=name).resolved()
    assert (config.steps, config.rates) == (defaults.steps, defaults.rates)
    assert (config.target_loss, config.width) == (defaults.target_loss, defaults.width)
    assert config.out == Path("results") / name
    given = CompareConfig(workload=name, steps=7, rates=(2.0, 1.0), out=Path("x")).resolved()
    assert (given.steps, given.rates, given.out) == (7, (1.0, 2.0), Path("x"))
    assert given.depth == defaults.depth


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_default_grids_are_even_on_a_log_scale(name: str) -> None:
    """At least five rates, half a decade apart: 1, 3, 10, ..."""
    rates = WORKLOADS[name].defaults.rates
    assert len(rates) >= 5
    for low, high in pairwise(rates):
        assert high / low == pytest.approx(10**0.5, rel=0.06)


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": 0},
        {"steps": 0},
        {"width": -1},
        {"batch_size": 0},
        {"parallel_rates": -1},
        {"momentum": 1.0},
        {"tail": 0.0},
        {"target_loss": float("nan")},
        {"rates": ()},
        {"rates": (0.1, 0.1)},
        {"rates": (0.1, -0.1)},
        {"rates": (float("inf"),)},
        {"methods": ()},
        {"methods": ("plain", "plain")},
        {"methods": ("groupnorm",)},
        {"workload": "cifar"},
    ],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    """The message names the option as it is typed."""
    (name,) = options
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        replace(CompareConfig(), **options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rates", "--seeds", "0"], "--seeds: got 0, expected at least 1"),
        (["rates", "--methods", "bnp", "bnp"], "--methods: got ('bnp', 'bnp'), expected"),
        (["decay", "--batch-sizes", "4", "4"], "--batch-sizes: got (4, 4), expected one or more"),
        (["statistics-every", "--schedules"], "--schedules: got (), expected one or more, each"),
        (
            ["statistics-every", "--parallel-schedules", "-1"],
            "--parallel-schedules: got -1, expected",
        ),
        (["bench", "--rounds", "-1"], "--rounds: got -1, expected at least 1"),
    ],
)
def test_every_job_checks_its_options(words, message, capsys) -> None:
    """Before anything is read or trained, in one line."""
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_unknown_choices_are_refused(capsys) -> None:
    """On the command line and in a program."""
    with pytest.raises(SystemExit):
        main(["decay", "--batch-sizes", "5"])
    with pytest.raises(ConfigError, match="--batch-sizes: got 5, expected one of 1, 4, 16"):
        DecayOptions(batch_sizes=(5,))


def test_help_does_not_wait_for_jax() -> None:
    """Neither does a wrong option."""
    program = (
        "import sys; from experiments.__main__ import main\n"
        "for words in (['--help'], ['compare', '--help'], ['decay', '--help'], ['decay', '-x']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "assert not {'jax', 'flax', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_interruption_before_a_job_has_begun(monkeypatch, capsys) -> None:
    """While JAX is being imported, say: no traceback, the status of an interruption."""

    def stop(job: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pkgutil.resolve_name", stop)
    assert main(["bench"]) == 130
    assert "Stopped" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(JOBS))
def test_every_job_can_be_found(name: str) -> None:
    """Its function is there."""
    assert callable(pkgutil.resolve_name(JOBS[name].job))


def test_tail_steps_by_hand() -> None:
    """Five per cent of the steps, and at least one."""
    assert CompareConfig(steps=600).resolved().tail_steps == 30
    assert CompareConfig(steps=5).resolved().tail_steps == 1
    assert CompareConfig(steps=10, tail=1.0).resolved().tail_steps == 10


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option has a text, with the workloads' defaults in it."""
    with pytest.raises(SystemExit) as caught:
        main(["compare", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in fields(CompareConfig):
        name = field.name.replace("_", "-")
        flag = f"--{name}, --no-{name}" if isinstance(field.default, bool) else f"--{name}"
        explanation = text.split(f" {flag} ", 1)[1].split(" --", 1)[0]
        assert "(default:" in explanation or "default" in text.split(f" {flag} ", 1)[1][:400]
        assert len(explanation) > 40
    assert f"photo {WORKLOADS['photo'].defaults.steps};" in text


def test_command_line_reports_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that cannot work ends with a status and one line, not with a traceback."""
    assert main(["compare", "--seeds", "0"]) == 2
    assert capsys.readouterr().err == "error: --seeds: got 0, expected at least 1\n"
