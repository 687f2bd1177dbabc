"""What a comparison leaves behind when it does not come to its end, or has nothing to show."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from experiments import compare
from experiments.errors import ConfigError
from experiments.options import CompareConfig
from experiments.tests.conftest import smoke_config
from experiments.tests.test_compare import PLOTS, expected_files, names, read, table
from experiments.training.trainer import Runs


def small(out: Path, **options: Any) -> CompareConfig:
    """Two methods on the digits."""
    config = smoke_config("digits", out)
    return replace(config, **{"methods": ("plain", "layernorm"), "rates": (0.1,), **options})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put something quick in the place of training, for tests of what is around it."""

    def replace_training(
        loss: float = 1.0, stop: BaseException | None = None, after: int = 0
    ) -> None:
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

    return replace_training


def told(config: CompareConfig, status: int = 0) -> str:
    """Run a comparison and return what it says."""
    output = io.StringIO()
    assert compare.run(config, Console(file=output, width=200)) == status
    return " ".join(output.getvalue().split())


def test_interruption_keeps_what_was_finished(tmp_path: Path, pretend) -> None:
    """The finished method's runs are whole, the message names the file, nothing else is there."""
    pretend(stop=KeyboardInterrupt(), after=1)
    text = told(small(tmp_path), status=130)
    assert "1 of 2 methods (plain)" in text
    assert str(tmp_path / "runs.partial.jsonl") in text
    assert "1 ± 0" in text  # the table of what there is
    assert names(tmp_path) == {"runs.partial.jsonl"}
    lines = (tmp_path / "runs.partial.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["method"], r["seed"], len(r["curve"])) for r in records] == [
        ("plain", 0, 5),
        ("plain", 1, 5),
    ]

    pretend()
    told(small(tmp_path))
    assert names(tmp_path) == expected_files(PLOTS)
    assert {record["method"] for record in read(tmp_path)} == {"plain", "layernorm"}


def test_what_breaks_off_leaves_earlier_results_alone(
    tmp_path: Path, pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison that fails does not touch the files of one that did not."""
    pretend()
    told(small(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == expected_files(PLOTS)
    pretend(loss=2.0, stop=RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        told(small(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    pretend(loss=2.0, stop=RuntimeError("broken"), after=1)
    with pytest.raises(RuntimeError, match="broken"):
        told(small(tmp_path))
    assert names(tmp_path) == set(before) | {"runs.partial.jsonl"}
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content


def test_a_plot_that_fails_is_not_half_written(
    tmp_path: Path, pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving a figure breaks in the middle: no piece of it is left, and the runs are kept."""

    def savefig(figure: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    pretend()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    with pytest.raises(OSError, match="disk full"):
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
