"""Whole networks of other people: converted, measured, trained a step, reverted."""

import copy
import dataclasses

import pytest
import torch

import torchnorm
from parity_tests.models import torch as models
from parity_tests.models import torch_networks
from parity_tests.tolerances import GATE, VISIBLE, slice_error

pytest.importorskip("transformers")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with models.one_thread():
        yield


#: One of each kind -> how many layers are left alone, of those that own a matrix. The others are
#: measured by `python -m parity_tests.models` and by slow tests.
QUICK = {
    "RegNet (squeeze and excite)": 0,
    "SegFormer": 0,
    "BERT": 4,
    "GPT-2": 3,
    "T5 (gated GELU)": 6,
    "Llama": 1,
    "Phi-3 (fused SwiGLU)": 1,
    "Wav2Vec2": 1,
    "nn.TransformerEncoder": 4,
    "LSTM": 1,
}
EVERY = [
    pytest.param(model, id=model.name, marks=[] if model.name in QUICK else pytest.mark.slow)
    for model in torch_networks.MODELS
]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("model", EVERY)
def test_model(model):
    for name in model.needs:
        pytest.importorskip(name)
    outcome = models.measure(model)
    assert outcome.unequal == []
    assert outcome.error <= GATE["float64"], outcome.where
    if model.name in QUICK:
        assert len(outcome.report.left) == QUICK[model.name]
        assert not outcome.report.unresolved
    assert len(outcome.errors) + len(outcome.unclear) >= len(outcome.report.converted)
    gates = [row for row in outcome.report.converted if row.gate is not None]
    assert gates


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_the_librarys_own_gradient_checkpointing_and_generation(reentrant):
    model = next(m for m in torch_networks.MODELS if m.name == "Llama")
    reference, inputs = models.build(model)
    plain, saving = copy.deepcopy(reference), copy.deepcopy(reference)
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    kwargs = {"rule": models.PRECONDITIONED}
    reports = [torchnorm.convert(each, **kwargs) for each in (plain, saving)]  # dummy inputs
    assert str(reports[0]) == str(reports[1])
    results = [models.gradients(each, inputs)[1] for each in (plain, saving)]
    for name, expected in results[0].items():
        assert slice_error(results[1][name], expected, axes=(0,)) <= GATE["float64"], name
    reference, plain = reference.eval(), plain.eval()
    texts = [
        each.generate(**inputs, max_new_tokens=4, do_sample=False) for each in (reference, plain)
    ]
    assert torch.equal(*texts)


def test_a_wrong_expectation_is_visible():
    # The comparison can fail: told another activation, it does.
    model = next(m for m in torch_networks.MODELS if m.name == "ViT")
    wrong = dataclasses.replace(
        model, seen={"*fc1": torch_networks.itself(torch_networks.quick_gelu)}
    )
    outcome = models.measure(wrong)
    assert outcome.error > VISIBLE
    assert "fc1" in outcome.where
