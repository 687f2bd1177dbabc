"""The job as a whole, at tiny sizes: what it writes, and what becomes of it when it is ended."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.bench import job, networks_jax, networks_torch, tables
from experiments.bench.methods import METHODS, Method
from experiments.bench.networks import NETWORKS, Network
from experiments.bench.options import BenchOptions, NetworkName, SettingName, TimedName
from experiments.errors import ExperimentError

TINY = Network("mlp", 6, 4)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks in the place of all."""
    monkeypatch.setitem(NETWORKS, "mlp-256", TINY)
    monkeypatch.setitem(NETWORKS, "resnet", Network("resnet", 2, 4, 5))
    monkeypatch.setattr(networks_jax, "HIDDEN", 1)
    monkeypatch.setattr(networks_torch, "HIDDEN", 1)
    monkeypatch.setattr(job, "sweep", lambda quick: {"batch": [TINY], "width": [TINY]})


def bench(out: Path, status: int = 0, **options: Any) -> tuple[str, dict[str, Any]]:
    """Run it, and return what it says and what it writes."""
    given = {"quick": True, "rounds": 1, "out": out, "methods": ("neuronwise",), **options}
    output = io.StringIO()
    assert job.run(BenchOptions(**given), Console(file=output, width=200)) == status
    return output.getvalue(), json.loads((out / "bench.json").read_text())


def test_names_agree() -> None:
    """Command line and tables know the same."""
    assert get_args(TimedName) == tuple(METHODS)
    assert get_args(NetworkName) == tuple(NETWORKS)
    assert get_args(SettingName) == tuple(tables.SETTINGS) == tuple(job.BUILD_SECONDS)


def test_files_hold_what_was_measured(tmp_path, monkeypatch) -> None:
    """Table, numbers, plot; both kinds of steps of a rule that takes statistics now and then."""
    rare = Method("rare", rule={"statistics_every": 16})
    monkeypatch.setitem(METHODS, "neuronwise", rare)
    monkeypatch.setattr(job, "SWEPT", ("plain", "neuronwise"))
    text, found = bench(tmp_path / "new", rounds=2)
    names = {file.name for file in (tmp_path / "new").iterdir()}
    assert names == {"table.md", "bench.json", "cost.png", "cost.svg"}
    table = (tmp_path / "new" / "table.md").read_text()
    for words in ("JAX, jit", "PyTorch, eager", "MLP 6 x 4: plain", "rare, step with statistics"):
        assert words in table
        assert words in text
    assert found["threads"] == 1
    assert len(found["load"]["begin"]) == len(found["load"]["end"]) == 3
    assert {"jax", "torch", "jaxnorm", "python"} <= set(found["origin"]["versions"])
    cells = {(c["setting"], c["method"]): c for c in found["cells"]}
    assert set(cells) == {(s, m) for s in ("jax", "torch") for m in ("plain", "neuronwise")}
    for (_, method), cell in cells.items():
        two = method == "neuronwise"
        parts = {"with statistics", "without statistics"} if two else {"step"}
        assert set(cell["seconds_per_step"]) == parts
        assert all(len(each) == 2 for each in cell["seconds_per_step"].values())
        assert cell["statistics_every"] == (16 if two else 1)
        assert cell["state_bytes"] > 0
        assert cell["ratios"]["run"]["median"] > 0


def test_an_interruption_leaves_what_was_timed(tmp_path, monkeypatch) -> None:
    """The first network's numbers; the status of an interruption."""
    rounds, time_round = [], job.time_round

    def interrupted(*args: Any) -> None:
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        time_round(*args)

    monkeypatch.setattr(job, "time_round", interrupted)
    options = {"networks": ("mlp-256", "resnet"), "frameworks": ("torch",), "sweep": False}
    text, found = bench(tmp_path, status=130, **options)
    assert "Stopped" in text
    medians = [bool(cell["ratios"]) for cell in found["cells"]]
    assert medians == [True, True, False, False]
    assert "MLP 6 x 4: neuron-wise" in (tmp_path / "table.md").read_text()


def test_out_of_memory_is_said_in_the_cell(tmp_path, monkeypatch) -> None:
    """The other methods go on."""
    make = job._Group._make

    def full(group: Any, method: str) -> Any:
        if method == "batchnorm":
            raise MemoryError
        return make(group, method)

    monkeypatch.setattr(job._Group, "_make", full)
    options = {"frameworks": ("torch",), "methods": ("batchnorm", "muon"), "sweep": False}
    text, found = bench(tmp_path, **options)
    problems = {cell["method"]: cell["problem"] for cell in found["cells"]}
    assert problems == {"plain": None, "batchnorm": "out of memory", "muon": None}
    (row,) = (line for line in text.splitlines() if "MLP 6 x 4: BatchNorm" in line)
    assert row.split()[-3:] == ["out", "of", "memory"]


def test_a_mistake_ends_the_job_and_is_not_hidden(tmp_path, monkeypatch) -> None:
    """What was timed is written all the same."""

    def broken(*args: Any) -> None:
        raise ValueError("a mistake")

    monkeypatch.setattr(job, "time_round", broken)
    with pytest.raises(ValueError, match="a mistake"):
        bench(tmp_path, frameworks=("torch",))
    assert (tmp_path / "bench.json").exists()


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("device", ["nonsense", "cpu:99", "cpu:x", "cpu:", ":1", ""])
def test_a_device_that_is_not_there_is_refused(tmp_path, framework, device, capsys) -> None:
    """In one line, with the name of the option."""
    words = ["bench", "--quick", "--device", device, "--out", str(tmp_path)]
    assert main([*words, "--frameworks", framework]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --device: got {device!r}, ")


def test_a_setting_that_cannot_be_is_left_out_with_the_reason(tmp_path, monkeypatch) -> None:
    """Unless nothing remains."""
    settings = {"frameworks": ("torch", "torch-cudagraphs"), "device": "cpu", "sweep": False}
    text, found = bench(tmp_path, **settings)
    assert found["left_out"] == {"torch-cudagraphs": "CUDA graphs need --device cuda, got cpu"}
    assert "torch-cudagraphs is left out: CUDA graphs need" in text
    with pytest.raises(ExperimentError, match="CUDA graphs need --device cuda"):
        bench(tmp_path, frameworks=("torch-cudagraphs",), device="cpu")


def test_without_pytorch_jax_is_timed(tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec

    def without(name: str) -> Any:
        return None if name == "torch" else find(name)

    monkeypatch.setattr("importlib.util.find_spec", without)
    text, found = bench(tmp_path, sweep=False, methods=("batchnorm",))
    assert "torch is left out: PyTorch is not installed" in text
    assert {cell["setting"] for cell in found["cells"]} == {"jax"}


def test_quick_and_open_options() -> None:
    """Plain is always timed, first, and once."""
    full, quick = BenchOptions().resolved(), BenchOptions(quick=True).resolved()
    assert len(full.networks) > len(quick.networks)
    assert full.rounds > quick.rounds
    given = BenchOptions(methods=("bnp", "plain"), rounds=2, quick=True).resolved()
    assert (given.methods, given.rounds) == (("plain", "bnp"), 2)
