"""Whole networks of other people: converted, measured, trained a step, reverted."""

import copy
import dataclasses

import pytest
import torch

import torchnorm
from parity_tests import models, models_torch
from parity_tests.tolerances import GATE, VISIBLE, slice_error

pytest.importorskip("transformers")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with models_torch.one_thread():
        yield


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("model", models_torch.MODELS, ids=lambda model: model.name)
def test_model(model):
    outcome = models_torch.measure(model)
    assert outcome.unequal == []
    assert outcome.error <= GATE["float64"], outcome.worst
    assert len(outcome.report.left) == model.left
    assert not outcome.report.unresolved
    assert outcome.compared >= len(outcome.report.converted)
    gates = [row for row in outcome.report.converted if row.gate is not None]
    assert gates


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_the_librarys_own_gradient_checkpointing_and_generation(reentrant):
    model = next(m for m in models_torch.MODELS if m.name == "Llama")
    reference, inputs = models_torch.build(model)
    plain, saving = copy.deepcopy(reference), copy.deepcopy(reference)
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    how = {"rule": models_torch.PRECONDITIONED}
    reports = [torchnorm.convert(each, **how) for each in (plain, saving)]  # dummy inputs
    assert str(reports[0]) == str(reports[1])
    results = [models_torch.gradients(each, inputs)[1] for each in (plain, saving)]
    for name, expected in results[0].items():
        assert slice_error(results[1][name], expected, axes=(0,)) <= GATE["float64"], name
    reference, plain = reference.eval(), plain.eval()
    texts = [
        each.generate(**inputs, max_new_tokens=4, do_sample=False) for each in (reference, plain)
    ]
    assert torch.equal(*texts)


def test_a_wrong_expectation_is_visible():
    # The comparison can fail: told another activation, it does.
    model = next(m for m in models_torch.MODELS if m.name == "ViT")
    wrong = dataclasses.replace(model, seen={"*fc1": models_torch.own(models_torch._quick_gelu)})
    outcome = models_torch.measure(wrong)
    assert outcome.error > VISIBLE
    assert "fc1" in outcome.worst


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_the_command_prints_a_table_and_fails_on_a_miss(monkeypatch, capsys):
    vit = [model for model in models_torch.MODELS if model.name == "ViT"]
    monkeypatch.setattr(models_torch, "MODELS", vit)
    monkeypatch.setattr(models, "FRAMEWORKS", ("torch",))
    assert models.main() == 0
    assert "1 networks, 0 with a miss" in capsys.readouterr().out
    wrong = dataclasses.replace(vit[0], seen={})
    monkeypatch.setattr(models_torch, "MODELS", [wrong])
    assert models.main() == 1
    models._plain(models.rows())
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert row.index("ViT") == header.index("model")
