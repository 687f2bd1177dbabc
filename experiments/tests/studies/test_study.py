"""What all studies promise: files, tables of their numbers, no old number as a new one."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.errors import ConfigError, DataError, WriteError
from experiments.records import content
from experiments.records.files import alone
from experiments.studies import decay, problems, study, tasks
from experiments.studies.decay import Decay
from experiments.studies.options import DecayOptions, RatesOptions, StatisticsEveryOptions
from experiments.studies.problems import Problem
from experiments.studies.rates import Rates
from experiments.studies.statistics_every import StatisticsEvery
from experiments.studies.study import Study
from experiments.studies.tasks import Task
from experiments.tests.records.test_files import fill_disk
from experiments.training.trainer import Runs

TINY = Task("tiny", "photo", widths=(4,))
STUDIES = ("rates", "decay", "statistics_every")


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps of a tiny network."""
    for name in ("small_photo", "mlp"):
        monkeypatch.setitem(tasks.TASKS, name, TINY)
    problem = Problem("small_photo", "sgd", 32, 8, 1e-3, 0.1, "MLP, images")
    monkeypatch.setitem(problems.PROBLEMS, "photo_sgd", problem)
    monkeypatch.setattr(decay, "STEPS", {16: 8})


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def make(name: str, out: Path, seeds: int = 1) -> Study:
    """A study of two or three cells."""
    if name == "rates":
        methods = ("batchnorm",)
        return Rates(RatesOptions(problems=("photo_sgd",), methods=methods, seeds=seeds, out=out))
    if name == "decay":
        return Decay(DecayOptions(batch_sizes=(16,), optimizers=("sgd",), seeds=seeds, out=out))
    some = {"problems": ("photo_sgd",), "schedules": ("default", "rows_4")}
    return StatisticsEvery(StatisticsEveryOptions(**some, steps=40, seeds=seeds, out=out))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Losses made up from the rate in the place of training; the number of rates of each call."""
    calls: list[int] = []

    def trainer(self: Study, group: object, make: object):
        def train(knobs):
            calls.append(len(knobs.rate))
            best = np.log10(np.asarray(knobs.rate)) + 2
            finals = 1 + best[:, None] ** 2 + np.arange(self.options.seeds)
            losses = np.repeat(finals[..., None], 8, axis=-1)
            losses[..., 0] = 100
            return Runs(losses, finals, None, 0.0, 0.0)

        return train

    monkeypatch.setattr(Study, "trainer", trainer)
    return calls


def names(folder: Path) -> set[str]:
    """The files of a folder, without the lock and who held it, which may stay."""
    return {path.name for path in folder.iterdir() if path.suffix not in (".lock", ".process")}


def told(study: Study, status: int = 0) -> str:
    """Run a study and return what it says."""
    output = io.StringIO()
    assert study.run(Console(file=output, width=300)) == status
    return " ".join(output.getvalue().split())


@pytest.mark.parametrize("name", STUDIES)
def test_files_hold_what_was_found(name: str, tmp_path: Path, pretend: list[int]) -> None:
    """Tables whose cells are the numbers of the CSV, and a picture; again without training."""
    text = told(make(name, tmp_path))
    assert "0 of them are in" in text
    assert "left 0:00:00" in text
    endings = [".md", ".csv", ".png", ".jsonl"] + ["_few.png"] * (name == "rates")
    assert names(tmp_path) == {name + ending for ending in endings}
    lines = (tmp_path / f"{name}.csv").read_text().splitlines()
    assert ",rate,seed," in lines[0]
    assert lines[0].endswith(",final_train_loss")
    losses = [float(line.split(",")[-1]) for line in lines[1:]]
    page = (tmp_path / f"{name}.md").read_text()
    if name == "rates":
        assert "**1.000 (1)**" in page  # the methods are alike
    else:
        assert f"{min(losses):.3g}" in page
    assert "Seeds: 1; jaxnorm " in page
    records = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert [record["final_train_loss"] for record in records] == pytest.approx(losses, rel=1e-4)

    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    pretend.clear()
    told(make(name, tmp_path))
    assert not pretend
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.mark.parametrize("name", STUDIES)
def test_other_seeds_code_or_data_are_trained(
    name: str, tmp_path: Path, pretend: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the first run is shown as theirs; it is still there when it is asked for."""
    told(make(name, tmp_path))
    first = (tmp_path / f"{name}.csv").read_text()
    count = len(pretend)
    text = told(make(name, tmp_path, seeds=2))
    assert len(pretend) == 2 * count
    assert "of other options, data or code" in text
    second = (tmp_path / f"{name}.csv").read_text()
    assert second.count(",1,") > 0
    assert len(second.splitlines()) == 2 * len(first.splitlines()) - 1
    with monkeypatch.context() as patch:
        patch.setattr(content, "code_digest", lambda: "another")
        told(make(name, tmp_path, seeds=2))
    assert len(pretend) == 3 * count
    with monkeypatch.context() as patch:
        patch.setattr(content, "data_digest", lambda workload: "another")
        told(make(name, tmp_path, seeds=2))
    assert len(pretend) == 4 * count
    told(make(name, tmp_path))
    assert len(pretend) == 4 * count
    assert (tmp_path / f"{name}.csv").read_text() == first


@pytest.mark.parametrize("name", STUDIES)
def test_interruption_keeps_the_cells(
    name: str, tmp_path: Path, pretend: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 130, the message names the file; the next run trains the rest."""
    known = make(name, tmp_path)
    train, calls = type(known).train, []

    def stop(self: Study, cell: object):
        calls.append(cell)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(self, cell)

    monkeypatch.setattr(type(known), "train", stop)
    text = told(known, status=130)
    cells = len(known.cells())
    assert f"Stopped after 1 of {cells} cells, which are kept in {tmp_path / name}.jsonl" in text
    assert "the same command goes on" in text
    assert names(tmp_path) == {f"{name}.jsonl"}
    assert f"{cells} cells; 1 of them" in told(make(name, tmp_path))
    assert len(calls) == 2 + cells - 1


def test_a_killed_study_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    """Kill -9 after the first cell: what comes of it is what comes of a run in one piece."""
    program = (
        "import os, sys; from pathlib import Path; import pytest\n"
        "from experiments.studies import study\n"
        "from experiments.tests.studies import test_study as here\n"
        "write = study.write_records\n"
        "def stop(*args):\n"
        "    write(*args); os.kill(os.getpid(), 9)\n"
        "study.write_records = stop\n"
        "here.make_small(pytest.MonkeyPatch())\n"
        "here.make('rates', Path(sys.argv[1])).run()\n"
    )
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    command = [sys.executable, "-c", program, str(parts)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert names(parts) == {"rates.jsonl"}
    assert "1 of them are in" in told(make("rates", parts))
    told(make("rates", whole))
    for ending in (".csv", ".md"):
        expected = (whole / "rates").with_suffix(ending).read_bytes()
        assert (parts / "rates").with_suffix(ending).read_bytes() == expected


@pytest.mark.parametrize("name", STUDIES)
def test_a_damaged_file_is_named(name: str, tmp_path: Path, pretend: list[int]) -> None:
    """Instead of a traceback, before anything is trained."""
    (tmp_path / f"{name}.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(DataError, match=rf"{name}\.jsonl: line 1 is damaged.*remove the line"):
        make(name, tmp_path).run()
    assert not pretend


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path, pretend: list[int]) -> None:
    """While the first one is at work, before anything is trained."""
    with alone(tmp_path / "rates.jsonl"):
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* is writing"):
            make("rates", tmp_path).run()
        assert not pretend
    told(make("rates", tmp_path))
    assert pretend


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_loses_nothing(
    tmp_path: Path, pretend: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first cell: it stays, the message says why, and the next run goes on from there."""
    train, cells = Rates.train, []

    def fill(self: Rates, cell: object):
        cells.append(cell)
        if len(cells) == 2:
            fill_disk(tmp_path / "rates.jsonl")
        return train(self, cell)

    monkeypatch.setattr(Rates, "train", fill)
    with pytest.raises(WriteError, match=r"rates.jsonl: cannot be written \(No space left"):
        make("rates", tmp_path).run()
    assert names(tmp_path) == {"rates.jsonl"}
    assert "2 cells; 1 of them are in" in told(make("rates", tmp_path))


def test_a_cell_that_has_lost_runs_is_trained_again(tmp_path: Path, pretend: list[int]) -> None:
    """And the others are not; a line twice is as bad."""
    told(make("rates", tmp_path))
    file, count = tmp_path / "rates.jsonl", len(pretend)
    whole = [json.loads(line) for line in file.read_text().splitlines()]
    for damaged in (whole[1:], [whole[0], *whole]):
        file.write_text("".join(json.dumps(record) + "\n" for record in damaged))
        assert "1 have lost some of their runs and are trained again" in told(
            make("rates", tmp_path)
        )
        count += 1
        assert len(pretend) == count
        again = [json.loads(line) for line in file.read_text().splitlines()]
        for record in (*whole, *again):
            record.pop("finished", None)
        assert sorted(again, key=str) == sorted(whole, key=str)


def test_work_grows_with_what_is_trained() -> None:
    """The time left counts samples, and the steps that take them."""
    small, large = ({"steps": 10, "batch_size": size} for size in (1, 256))
    assert 1 < study._work(large) / study._work(small) < 256
