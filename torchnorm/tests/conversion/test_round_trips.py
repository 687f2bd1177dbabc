"""`torchnorm.convert` and `revert`: there and back, whatever else was done to the model."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import torchnorm
from parity_tests.models.torch import PRECONDITIONED, one_thread
from torchnorm.tests.conversion.nets import D, convert_copy, dense, rows, step


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def network():
    """A deferred layer in the model, a direct one in a part of it."""
    torch.manual_seed(0)
    part = nn.Sequential(dense(), nn.LeakyReLU(0.2), dense(), nn.Identity())
    return nn.Sequential(dense(), nn.LayerNorm(8, dtype=D), nn.ReLU(), part)


def shape_of(model):
    """Classes, attributes and hooks of every module."""
    return [
        (name, type(m), set(vars(m)), list(m._forward_hooks.values()), list(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]


def saved(model):
    """The whole model, through a file."""
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def same(model):
    return model


COPIES = {"itself": same, "deepcopy": copy.deepcopy, "save": saved}
COPIES["pickle"] = lambda model: pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("run", [False, True])
@pytest.mark.parametrize("name", COPIES)
def test_there_and_back(name, run):
    model = network()
    before, state = shape_of(model), list(model.state_dict())
    for _ in range(2):
        report = torchnorm.convert(model, rows())
        assert [row.reason for row in report.rows][:2] == ["deferred to 1", "direct"]
        assert list(model.state_dict()) == state
        if run:
            step(model, rows())
        model = COPIES[name](model)
        torchnorm.revert(model)
        assert shape_of(model) == before
    assert list(COPIES[name](model).state_dict()) == state


def test_a_part_and_then_the_whole():
    model = network()
    before = shape_of(model)
    torchnorm.convert(model[3], rows())
    with pytest.raises(ValueError, match=r"call torchnorm.revert\(model\) first"):
        torchnorm.convert(model, rows())
    with pytest.raises(ValueError, match="converted already"):
        torchnorm.convert(model[3], rows())
    torchnorm.revert(model)  # as it says
    torchnorm.convert(model, rows())
    torchnorm.revert(model[3])
    torchnorm.convert(model[3], rows())
    step(model, rows())
    torchnorm.revert(model)
    assert shape_of(model) == before


def test_hooks_that_were_added_afterwards_stay():
    model, seen = network(), []
    torchnorm.convert(model, rows())
    for module in model.modules():
        module.register_forward_hook(lambda m, i, o: seen.append(type(o)))
        module.register_forward_pre_hook(lambda m, i, k: seen.append(len(i)), with_kwargs=True)
    step(model, rows())
    before = list(seen)
    torchnorm.revert(model)
    seen.clear()
    step(model, rows())
    assert seen == before
    assert torch.Tensor in seen
    assert tuple not in seen
    for module in model.modules():
        assert len(module._forward_hooks) == len(module._forward_pre_hooks) == 1
        assert len(module._forward_pre_hooks_with_kwargs) == 1


def bias_only(layer):
    """A computed bias."""
    return parametrize.register_parametrization(layer, "bias", nn.Tanh())


COMPUTED = {
    "weight_norm": (parametrizations.weight_norm, "its weight goes into weight_norm, which"),
    "orthogonal": (parametrizations.orthogonal, "its weight goes into tril"),
    "bias": (bias_only, "deferred to 1"),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 2), "deferred to 1"),
    "pruned bias": (
        lambda layer: prune.l1_unstructured(layer, "bias", 2),
        "its bias is computed (parametrized, pruned)",
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_before_and_after(name):
    change, reason = COMPUTED[name]
    model = network()
    change(model[0])
    before = shape_of(model)
    assert torchnorm.convert(model, rows())["0"].reason.startswith(reason)
    torchnorm.revert(model)
    assert shape_of(model) == before
    model, _ = convert_copy(network(), rows(), rule=PRECONDITIONED)
    reference = network()
    for each in (model, reference):
        torch.manual_seed(1)
        change(each[0])
    with torch.no_grad():
        expected = reference(rows())
        assert torch.equal(model(rows()), expected)
        torchnorm.revert(model)
        assert torch.equal(model(rows()), expected)
    assert type(model[0]).__name__ == type(reference[0]).__name__
    assert not isinstance(model[0], torchnorm.Linear)
    assert model[0].extra_repr() == reference[0].extra_repr()
    if "pruned" in name:
        prune.remove(model[0], name.removeprefix("pruned ").replace("pruned", "weight"))
    else:
        parametrize.remove_parametrizations(model[0], "bias" if name == "bias" else "weight")
    assert type(model[0]) is nn.Linear


def test_lazy_buffers_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(affine=False), nn.ReLU())
    with pytest.raises(ValueError, match="run one batch through the model first"):
        torchnorm.convert(model, torch.randn(4, 3))
    model(torch.randn(4, 3))
    assert torchnorm.convert(model, torch.randn(4, 3))["0"].reason == "deferred to 1"
