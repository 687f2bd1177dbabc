"""What a comparison leaves when it does not come to its end, and what the next one makes of it."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from experiments import compare
from experiments.errors import ConfigError, WriteError
from experiments.options import CompareConfig
from experiments.records import content
from experiments.tests.conftest import Results, smoke_config
from experiments.tests.test_compare import PLOTS, expected_files, names, read, table
from experiments.training.trainer import Runs


def small(out: Path, **options: Any) -> CompareConfig:
    """Two methods on the digits."""
    config = smoke_config("digits", out)
    return replace(config, **{"methods": ("plain", "layernorm"), "rates": (0.1,), **options})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Put something quick in the place of training, for tests of what is around it."""

    def replace_training(
        loss: float = 1.0, stop: BaseException | None = None, after: int = 0
    ) -> list[int]:
        calls: list[int] = []

        def train_method(model: Any, workload: Any, config: Any, on_progress: Any) -> Runs:
            if stop is not None and len(calls) == after:
                raise stop
            calls.append(1)
            shape = (len(config.rates), config.seeds)
            on_progress(config.steps * shape[0] * shape[1])
            losses = np.full((*shape, config.steps), loss)
            losses[..., 0] += 1
            return Runs(losses, np.full(shape, 0.5), {}, seconds=1.0, compile_seconds=1.0)

        monkeypatch.setattr(compare, "train_method", train_method)
        return calls

    return replace_training


def told(config: CompareConfig, status: int = 0) -> str:
    """Run a comparison and return what it says."""
    output = io.StringIO()
    assert compare.run(config, Console(file=output, width=300)) == status
    return " ".join(output.getvalue().split())


def test_interruption_keeps_what_was_finished(tmp_path: Path, pretend) -> None:
    """The finished method's runs are whole, the message names the file, nothing else is there."""
    pretend(stop=KeyboardInterrupt(), after=1)
    text = told(small(tmp_path), status=130)
    assert "1 of 2 methods (plain)" in text
    assert str(tmp_path / "runs.partial.jsonl") in text
    assert "The same command goes on" in text
    assert "1 ± 0" in text  # the table of what there is
    assert names(tmp_path) == {"runs.partial.jsonl"}
    records = read(tmp_path, "runs.partial.jsonl")
    assert [(r["method"], r["seed"], len(r["curve"])) for r in records] == [
        ("plain", 0, 5),
        ("plain", 1, 5),
    ]

    calls = pretend(loss=2.0)
    assert "plain: best rate 0.1, final train loss 1;" in told(small(tmp_path))
    assert len(calls) == 1
    assert names(tmp_path) == expected_files(PLOTS)
    finals = {record["method"]: record["final_train_loss"] for record in read(tmp_path)}
    assert finals == {"plain": 1, "layernorm": 2}


def test_a_killed_comparison_goes_on_with_the_same_numbers(
    tmp_path: Path, digits_results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 in the second of two methods: the first is read, and nothing is different."""
    program = (
        "import os, sys; from pathlib import Path; from dataclasses import replace\n"
        "from experiments import compare; from experiments.tests.conftest import smoke_config\n"
        "train, calls = compare.train_method, []\n"
        "def stop(*args):\n"
        "    calls.append(1)\n"
        "    return train(*args) if len(calls) < 2 else os.kill(os.getpid(), 9)\n"
        "compare.train_method = stop\n"
        "methods = 'plain', 'batchnorm'\n"
        "compare.run(replace(smoke_config('digits', Path(sys.argv[1])), methods=methods))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert names(tmp_path) == {"runs.partial.jsonl"}
    calls, train = [], compare.train_method
    monkeypatch.setattr(compare, "train_method", lambda *a: calls.append(1) or train(*a))
    methods = "plain", "batchnorm"
    text = told(replace(digits_results.config, methods=methods, out=tmp_path))
    assert text.count("not trained again") == 1
    assert len(calls) == 1
    fields = ("method", "rate", "seed", "curve", "test", "key")
    runs, expected = (
        [[r[field] for field in fields] for r in read(folder) if r["method"] in methods]
        for folder in (tmp_path, digits_results.folder)
    )
    assert runs == expected
    assert names(tmp_path) == expected_files(PLOTS)


def test_all_is_drawn_again_without_training(photo_results: Results, pretend) -> None:
    """The same command writes the same table and plots, pictures too."""
    folder = photo_results.folder
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    for name in set(before) - {"runs.jsonl"}:
        (folder / name).unlink()
    pretend(stop=AssertionError("trained"))
    assert told(photo_results.config).count("not trained again") == 5
    after = {name: (folder / name).read_bytes() for name in names(folder)}
    assert after == before


def test_what_only_judges_trains_nothing(tmp_path: Path, pretend) -> None:
    """Another target, window or tail judges the known curves; fewer methods drop no run."""
    pretend()
    told(small(tmp_path))
    assert {record["steps_to_target"] for record in read(tmp_path)} == {None}
    pretend(stop=AssertionError("trained"))
    text = told(small(tmp_path, methods=("plain",), target_loss=1.5, window=2, tail=1.0))
    assert "layernorm" not in text
    plain, other = (
        [record for record in read(tmp_path) if record["method"] == method]
        for method in ("plain", "layernorm")
    )
    assert len(plain) == len(other) == 2
    for record in plain:
        assert record["steps_to_target"] == 3
        assert record["final_train_loss"] == pytest.approx(1.2)


def test_times_are_kept(tmp_path: Path, pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods are timed together: again where one is new or the target is another."""
    calls: list[dict[str, int]] = []

    def time_steps(runs: Any, workload: Any, plan: Any) -> dict[str, float]:
        calls.append({name: run.steps for name, run in runs.items()})
        return {name: 0.25 * len(name) for name in runs}

    monkeypatch.setattr(compare, "time_steps", time_steps)
    monkeypatch.setattr("experiments.report.plots.plot_all", lambda *_: [])
    pretend()
    options = {"timing": True, "target_loss": 1.5, "window": 2}
    text = told(small(tmp_path, **options))
    assert "seconds to loss 1.5" in text
    assert "3 ± 0 3.75 ± 0 1.00" in text  # plain: five letters
    assert "3 ± 0 6.75 ± 0 1.80" in text
    assert calls == [{"plain": 5, "layernorm": 5}]
    assert {r["method"]: r["seconds_per_step"] for r in read(tmp_path)} == {
        "plain": 1.25,
        "layernorm": 2.25,
    }
    page = (tmp_path / "table.md").read_bytes()
    told(small(tmp_path, **options))
    assert len(calls) == 1
    assert (tmp_path / "table.md").read_bytes() == page
    assert "seconds to loss" not in told(small(tmp_path))  # without timing
    assert len(calls) == 1
    told(small(tmp_path, methods=("plain", "layernorm", "bnp"), **options))
    assert calls[1:] == [{"plain": 5, "layernorm": 5, "bnp": 5}]
    monkeypatch.setattr("experiments.report.summary.TIMED", (1, 300))
    told(small(tmp_path, **options))
    assert calls[2:] == [{"plain": 3, "layernorm": 3}]


def test_what_diverges_is_not_timed(tmp_path: Path, pretend, monkeypatch) -> None:
    """It has no rate; the table has a dash, and the next run does not ask again."""
    calls: list[int] = []
    monkeypatch.setattr(compare, "time_steps", lambda runs, *_: calls.append(len(runs)) or {})
    monkeypatch.setattr("experiments.report.plots.plot_all", lambda *_: [])
    pretend(loss=float("inf"))
    for _ in range(2):
        told(small(tmp_path, methods=("plain",), timing=True))
    assert calls == [0]


OTHERS = (
    ({"optimizer": "adam"}, "optimizer sgd", "optimizer adam"),
    ({"seeds": 3}, "seeds 2", "seeds 3"),
    ({"rates": (0.1, 0.2)}, r"rates \[0.1\]", r"rates \[0.1, 0.2\]"),
    ({"momentum": 0.5}, "momentum 0.9", "momentum 0.5"),
    ({"workload": "photo"}, "workload digits", "workload photo"),
)


def test_other_options_do_not_share_a_folder(tmp_path: Path, pretend) -> None:
    """The message names both, and what there is stays; also where the first one broke off."""
    for stop, status in ((KeyboardInterrupt(), 130), (None, 0)):
        pretend(stop=stop, after=1)
        told(small(tmp_path), status)
        before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
        pretend(stop=AssertionError("trained"))
        for options, got, asked in OTHERS:
            with pytest.raises(ConfigError, match=f"--out.*with {got}, but asked for was {asked};"):
                told(small(tmp_path, **options))
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_each_optimizer_has_a_folder() -> None:
    """Where none is named."""
    assert CompareConfig(workload="digits").resolved().out == Path("results/digits")
    adam = CompareConfig(workload="digits", optimizer="adam").resolved()
    assert adam.out == Path("results/digits_adam")


def test_what_breaks_off_leaves_earlier_results_alone(
    tmp_path: Path, pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other code trains anew, and says so; if that fails, the old files are still there."""
    pretend()
    told(small(tmp_path))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert set(before) == expected_files(PLOTS)
    monkeypatch.setattr(content, "code_digest", lambda: "another")
    pretend(loss=2.0, stop=RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        told(small(tmp_path))
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before

    pretend(loss=2.0, stop=RuntimeError("broken"), after=1)
    with pytest.raises(RuntimeError, match="broken"):
        told(small(tmp_path))
    assert names(tmp_path) == set(before) | {"runs.partial.jsonl"}
    for name, old in before.items():
        assert (tmp_path / name).read_bytes() == old

    calls = pretend(loss=2.0)
    assert "layernorm: made with other data, code" in told(small(tmp_path))
    assert len(calls) == 1  # plain is in the file of the one that broke off
    assert {record["final_train_loss"] for record in read(tmp_path)} == {2}


def test_a_plot_that_fails_is_not_half_written(
    tmp_path: Path, pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving a figure breaks in the middle: no piece of it is left, and the runs are kept."""

    def savefig(figure: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    pretend()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    with pytest.raises(WriteError, match=r"\(disk full\); what it held before is as it was"):
        told(small(tmp_path))
    assert names(tmp_path) == {"table.md", "runs.partial.jsonl"}


def test_nothing_finished_nothing_written(tmp_path: Path, pretend) -> None:
    """Stopped in the first method, the message says so and the folder is empty."""
    pretend(stop=KeyboardInterrupt())
    assert "nothing was written" in told(small(tmp_path), status=130)
    assert not names(tmp_path)


def test_equal_seeds_can_be_drawn(tmp_path: Path, pretend) -> None:
    """The mean of three times 0.1 is not 0.1; the plots bear it."""
    pretend(loss=0.1)
    told(small(tmp_path, seeds=3))
    assert names(tmp_path) == expected_files(PLOTS)


def test_all_diverged_is_told(tmp_path: Path, pretend) -> None:
    """A method without a useful rate has a row, a warning and the plots all the same."""
    pretend(loss=float("inf"))
    assert "plain diverged at every rate" in told(small(tmp_path, methods=("plain",)))
    assert names(tmp_path) == expected_files(PLOTS)
    assert table(tmp_path)["plain"][0] == "none"


def test_folder_that_cannot_be_is_told_at_once(tmp_path: Path, pretend) -> None:
    """Before any training."""
    (tmp_path / "file").write_text("in the way")
    pretend(stop=AssertionError("trained"))
    with pytest.raises(ConfigError, match=r"--out.*another folder"):
        told(small(tmp_path / "file"))
