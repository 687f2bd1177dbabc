"""PPO on CartPole, very few updates of it: finite, reproducible, resumed to the same records."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.methods import METHODS
from experiments.reinforcement import tasks
from experiments.reinforcement.options import PpoOptions
from experiments.reinforcement.ppo import Learned, Ppo
from experiments.reinforcement.study import SCREENED, Reinforcement
from experiments.reinforcement.tasks import TASKS, Sizes

SMALL = TASKS["cartpole"]._replace(
    updates=3,
    lowest=1e-3,
    highest=1e-2,
    sizes=Sizes(environments=4, steps=16, epochs=2, minibatch=32, episodes=2, widths=(8,)),
)


@pytest.fixture(autouse=True)
def _gymnax() -> None:
    pytest.importorskip("gymnax")


@pytest.mark.parametrize("method", ["batchnorm", "neuronwise"])
def test_the_same_seed_gives_the_same_numbers(method: str) -> None:
    """Finite ones; another seed and another rate give others; the first update acts alike."""
    learn = Ppo(SMALL, METHODS[method])
    found = learn([0.3, 0.3, 0.3, 1e-4], [0, 2, 0, 0])
    for field in found:
        assert np.isfinite(field).all()
        np.testing.assert_array_equal(field[0], field[2])
        assert (field[0] != field[1]).any()
    assert (found.returns[0] != found.returns[3]).any()
    np.testing.assert_array_equal(found.returns[0, 0], found.returns[3, 0])  # nothing learned yet
    assert found.returns[0, 0] != found.returns[1, 0]  # nor by other weights: by other draws
    assert (found.episodes.sum(axis=-1) > 0).all()


def pretend(self: Ppo, rates: np.ndarray, seeds: np.ndarray) -> Learned:
    """Returns made up from rates and seeds in the place of learning; the largest rate diverges."""
    final = np.where(rates > 5e-3, np.nan, 400 + 1000 * rates + seeds / 100)
    returns = np.outer(final, np.arange(SMALL.updates))
    return Learned(final, np.nan_to_num(returns), np.full(returns.shape, 2), np.ones(returns.shape))


def run(folder: Path) -> list[dict]:
    """The records of a study of one method beside plain."""
    options = PpoOptions(environments=("cartpole",), methods=("plain",), out=folder)
    assert Reinforcement(options).run(Console(quiet=True)) == 0
    return [json.loads(line) for line in (folder / "ppo.jsonl").read_text().splitlines()]


def test_resuming_gives_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the screen it goes on with the final runs; in the end nothing is trained again."""
    monkeypatch.setitem(tasks.TASKS, "cartpole", SMALL)
    monkeypatch.setattr(Ppo, "__call__", pretend)
    records = run(tmp_path)
    stages = [record["stage"] for record in records]
    count = SCREENED * len(SMALL.rates)
    assert stages == ["screen"] * count + ["final"] * count
    assert len({record["rate_index"] for record in records[count:]}) == 1
    for record in records:
        diverged, lost = record["final_return"] is None, record["shortfall"]
        assert diverged == (record["rate_index"] == -8)
        assert (
            lost is None if diverged else lost == pytest.approx(500 - record["final_return"], 1e-3)
        )
    text = (tmp_path / "ppo.md").read_text()
    assert "| plain | " in text
    assert (tmp_path / "ppo.png").stat().st_size > 0

    file = tmp_path / "ppo.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records[:count]))
    again = run(tmp_path)
    for record in (*records, *again):
        del record["finished"]
    assert again == records
    monkeypatch.setattr(Reinforcement, "train", lambda *_: pytest.fail("trained again"))
    run(tmp_path)


def test_without_gymnax_it_says_what_to_install(monkeypatch, capsys, tmp_path) -> None:
    """In one line."""
    monkeypatch.setitem(sys.modules, "gymnax", None)
    assert main(["ppo", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'neuronwise-norm[experiments,rl]'")
