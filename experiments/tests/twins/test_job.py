"""Both frameworks learn alike, step by step."""

import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import torchnorm
from experiments import twins
from experiments.__main__ import main
from experiments.networks.layers import batch_norm, layer_norm
from experiments.networks.transformer import Transformer
from experiments.studies.tasks import Task
from experiments.twins import job, networks
from experiments.twins.networks import twin_of


def test_it_writes_curves_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["twins", "--tasks", "digits", "--steps", "12", "--batch-size", "16"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"twins.md", "twins.png"}
    rows = (tmp_path / "twins.md").read_text().splitlines()[2:]
    assert len(rows) == 3
    for row in rows:
        *_, early, apart = (cell.strip() for cell in row.strip("|").split("|"))
        assert float(early) <= float(apart) < 1e-4
    assert len({row.split("|")[2] for row in rows}) == 3  # each learns in another way


def test_it_would_see_another_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "asdict", lambda rule: {"weighting": "uniform"})
    options = job.TwinsOptions(tasks=("digits",), methods=("neuronwise",), steps=12, batch_size=16)
    (curves,) = job.measure(options)
    assert curves.apart(12) > 1e-4  # what the other test allows


def test_without_pytorch_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("job", "networks"):
        monkeypatch.delitem(sys.modules, f"experiments.twins.{name}")
        monkeypatch.delattr(twins, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["twins"]) == 2
    assert "pip install 'neuronwise-norm[experiments,torch]'" in capsys.readouterr().err


@pytest.mark.parametrize("halved", [False, True])
def test_convolutions_are_flaxs(halved: bool) -> None:
    task = Task("", "", channels=(3, 4), widths=(5,), image=(14, 2), halved=halved)
    _same(task.network(None, 2, batch_norm), np.random.default_rng(0).normal(size=(6, 392)))


def test_the_transformer_is_flaxs() -> None:
    tokens = np.random.default_rng(0).integers(0, 7, (3, 5)).astype(np.int32)
    _same(Transformer(8, 2, 2, 7, None, layer_norm), tokens)


def _same(network, x) -> None:
    x = x if x.dtype == np.int32 else x.astype(np.float32)
    variables = jax.jit(partial(network.init, train=True))(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])  # no bias is nought
    apply = jax.jit(partial(network.apply, train=True, mutable=True))
    expected, _ = apply({**variables, "params": params}, x)
    twin = twin_of(network, x.shape[1:])
    twin.load(params)
    found = twin(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, torchnorm.Linear) for m in twin.modules())
