"""`python -m parity_tests` and `python -m parity_tests.models`, as a user meets them."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from parity_tests import progress
from parity_tests.__main__ import main
from parity_tests.matrix import command, compare
from parity_tests.models import command as models_command
from parity_tests.models import torch as torch_models
from parity_tests.models import train_torch, training
from parity_tests.models.__main__ import main as models
from parity_tests.models.outcome import Network, Trial, Variant

#: Two cases that PyTorch has, and some milliseconds each.
FEW = ["--only", "torch", "--rows", "no_bias float64"]
ENCODER = "nn.TransformerEncoder/torch"

Output = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def _missing(patch: Patch, *modules: str) -> None:
    """None in sys.modules is how a module is made to look as if it were not installed."""
    for name in modules:
        patch.setitem(sys.modules, name, None)


def _nothing(*_: Any) -> None:
    raise AssertionError("something was run")


@pytest.mark.parametrize("run", [main, models])
def test_help_runs_nothing(run: Any, monkeypatch: Patch, capsys: Output) -> None:
    monkeypatch.setattr(compare, "examine", _nothing)
    monkeypatch.setattr(models_command, "_measured", _nothing)
    with pytest.raises(SystemExit) as left:
        run(["--help"])
    assert left.value.code == 0
    assert "--list" in capsys.readouterr().out


def test_rows(monkeypatch: Patch, capsys: Output) -> None:
    assert main(FEW) == 0
    assert "0 out of their gate, 0 crashed" in capsys.readouterr().out
    monkeypatch.setattr(compare, "examine", _nothing)
    assert main(["--list", "--rows", "CONV, constant"]) == 0
    assert capsys.readouterr().out == "conv, constant float64\nconv, constant float32\n"


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_device_that_is_not_there(framework: str, monkeypatch: Patch, capsys: Output) -> None:
    monkeypatch.setattr(compare, "examine", _nothing)
    chosen = ["--only", framework, "--rows", "no_bias float64", "--device", "abacus"]
    assert main(chosen) == 2
    assert "device: got 'abacus', expected one that" in capsys.readouterr().err


def test_to_compare_nothing_fails(capsys: Output) -> None:
    assert main(["--rows", "dense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rows: got 'dense', expected the beginning of a row, for example '")
    assert error.endswith("--list prints all\n0 comparisons\n")
    assert main(["--rows", "constant, conv"]) == 2
    assert "'conv, constant float32'" in capsys.readouterr().err
    assert main(["--only", "torch", "--rows", "conv: mask"]) == 2  # there is no such operation
    assert "got 'conv: mask', expected rows that torch has" in capsys.readouterr().err


def test_a_missing_module_is_said_with_its_extra(monkeypatch: Patch, capsys: Output) -> None:
    for run, name in ((main, "rich"), (main, "numpy"), (models, "tyro")):
        with monkeypatch.context() as patch:
            _missing(patch, name)
            assert run([]) == 2
        error = capsys.readouterr().err
        assert f"got no module named '{name}'" in error
        assert "pip install 'neuronwise-norm[test]'" in error


def test_networks_whose_package_is_missing_are_left_out(monkeypatch: Patch, capsys: Output) -> None:
    _missing(monkeypatch, "transformers", "torch_geometric")
    assert models(["--only", "GCN", "BERT"]) == 2
    error = capsys.readouterr().err
    assert "left out: BERT/torch: got no module named 'transformers'" in error
    assert "left out: GCN (PyG)/torch: got no module named 'torch_geometric'" in error
    assert "pip install 'neuronwise-norm[networks]'" in error
    assert error.endswith("nothing to measure\n")
    monkeypatch.setattr(models_command, "import_module", _broken)
    monkeypatch.delitem(sys.modules, "transformers")
    found = models_command._installed([Network("x", "torch", _nothing, ("transformers",))])
    assert not found
    assert capsys.readouterr().err == "left out: x/torch: import transformers raised OSError: old\n"


def _broken(_: str) -> None:
    raise OSError("old")


def test_one_framework_is_enough(monkeypatch: Patch, capsys: Output) -> None:
    _missing(monkeypatch, "flax")
    assert main(["--rows", "no_bias float64"]) == 0
    found = capsys.readouterr()
    assert found.err.startswith("jax is left out: got no module named 'flax'")
    assert "torch functional" in found.out
    assert main(["--only", "jax"]) == 2
    _missing(monkeypatch, "torch")
    assert main([]) == 2
    assert "torch is left out" in capsys.readouterr().err


def test_an_interruption_prints_what_was_compared(monkeypatch: Patch, capsys: Output) -> None:
    examine, calls = compare.examine, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return examine(*arguments)

    monkeypatch.setattr(compare, "examine", interrupted)
    assert main(FEW) == 130
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 crashed; interrupted")
    monkeypatch.setattr(command.standard, "recipes", _interrupt)
    assert main(FEW) == 130
    assert capsys.readouterr().err == "interrupted before anything was compared\n"


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_progress(monkeypatch: Patch, capsys: Output) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert list(progress.track("abc", str.upper)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "1 of 3, 0:00:00 gone, about 0:00:00 left: B",
        "2 of 3, 0:00:00 gone, about 0:00:00 left: C",
    ]
    terminal = Console(stderr=True, force_terminal=True)
    assert list(progress._bar("abc", str.upper, terminal)) == ["a", "b", "c"]


def test_models(monkeypatch: Patch, capsys: Output) -> None:
    assert models(["--list", "--only", "vit", "resnet/nnx"]) == 0
    assert capsys.readouterr().out.split() == ["ViT/linen", "ResNet/nnx", "ViT/nnx", "ViT/torch"]
    assert models(["--only", "ViT/tensorflow"]) == 2
    assert "only: got 'ViT/tensorflow', expected one of ResNet/linen" in capsys.readouterr().err
    assert models(["--only", ENCODER.upper()]) == 0
    assert "1 networks, 0 with a miss" in capsys.readouterr().out
    assert models(["--only", ENCODER, "--left"]) == 0
    assert "  2 MultiheadAttention, left alone: its kernels are fused" in capsys.readouterr().out
    encoder = next(model for model in torch_models.MODELS if model.name in ENCODER)
    monkeypatch.setattr(torch_models, "MODELS", [replace(encoder, seen={})])
    assert models(["--only", ENCODER]) == 1
    assert "1 networks, 1 with a miss" in capsys.readouterr().out


def test_models_that_crash_and_models_interrupted(monkeypatch: Patch, capsys: Output) -> None:
    for error, code in ((RuntimeError("broken"), 2), (KeyboardInterrupt(), 130)):

        def measure(_: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(torch_models, "measure", measure)
        assert models(["--only", ENCODER]) == code
    out = capsys.readouterr().out
    assert "broken" in out
    assert "0 networks of 1, interrupted, 0 with a miss" in out


def test_models_in_training(monkeypatch: Patch, capsys: Output) -> None:
    monkeypatch.setattr(train_torch, "STEPS", 2)
    assert models(["--only", "flow/torch", "--train", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "two half circles: their density" in out
    assert "1 networks, worse at all rates: " in out

    def loss(seed: int, rate: float, ours: Variant | None) -> float:
        return (1 + 0.001 * seed) * (1.0 if ours is None else 1.5) * (1 if rate < 1 else -1)

    worse = Network("x", "torch", _nothing, (), Trial("a task", 0.1, loss))
    verdicts = [pair.verdict for pair in training.train(worse, 3).pairs]
    assert verdicts == ["worse", "worse"]
    negative = worse._replace(trial=Trial("a task", 1.0, loss))  # a return: less is better
    assert [pair.verdict for pair in training.train(negative, 3).pairs] == ["better", "worse"]
    same = training.Pair(0.1, [1.0, 1.2, 0.9], [1.1, 1.0, 0.95])
    assert same.verdict == "as good"
    assert training.Pair(0.1, [1.0, 1.0], [1.0, float("nan")]).verdict == "worse (diverges)"
    assert training.train(worse._replace(trial=Trial("", 0.1, _nothing)), 3).error
