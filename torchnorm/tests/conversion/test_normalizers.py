"""Every normalizer of ours behind a layer: its gate is what the activation finally sees."""

import copy

import pytest
import torch
from torch import nn

from parity_tests.models.torch import loss, one_thread
from torchnorm import normalizers
from torchnorm.activations import gate_slope
from torchnorm.normalizers.registry import NORMALIZERS
from torchnorm.tests.conversion.nets import D, check_layer, conv, convert_copy, dense, images, rows

#: How a class is made for so many channels, where not by their number.
MADE = {"GroupNorm": lambda kind, channels, **knobs: kind(2, channels, **knobs)}
#: What needs space, and what has to be said where there is none.
SPATIAL, WITHOUT_SPACE = {"InstanceNorm"}, {"SwitchableNorm": {"statistics": ("layer", "batch")}}
#: Besides each class as it comes: other ways through its code.
VARIANTS = {
    "BatchNorm": {"convention": "flax"},
    "InstanceNorm": {"track_running_stats": True},
    "OnlineNorm": {"guard": "layer_scaling"},
    "StochasticNorm": {"statistics": "batch"},
    "MixtureNorm": {"responsibility_gradient": True, "affine": False},
}
KINDS = {
    name: kind
    for name, kind in vars(normalizers).items()
    if isinstance(kind, type) and issubclass(kind, NORMALIZERS)
}
CASES = [
    *((name, {}, False) for name in KINDS),
    *((name, knobs, False) for name, knobs in VARIANTS.items()),
    *((name, WITHOUT_SPACE.get(name, {}), True) for name in KINDS if name not in SPATIAL),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def _normalizer(name, knobs, flat):
    """One with parameters that are not 0 and 1; LayerNorm and RMSNorm over all of a sample."""
    channels = 8 if flat else 4
    last = name in ("LayerNorm", "RMSNorm") and not flat
    make = MADE.get(name, lambda kind, *args, **knobs: kind(*args, **knobs))
    module = make(KINDS[name], images().shape[1:] if last else channels, dtype=D, **knobs)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def _run(model, x):
    """Output, gradients of the input and of the normalizer, and its buffers."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    torch.manual_seed(1)
    out = model(x)
    loss(out).backward()
    norm = model.norm
    return [out, x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize(("name", "knobs", "flat"), CASES, ids=str)
def test_layer_before(name, knobs, flat, behind):
    torch.manual_seed(0)
    layer, x = (dense, rows()) if flat else (conv, images())
    parts = {"norm": _normalizer(name, knobs, flat), "f": nn.SiLU()}
    order = ("f", "norm") if behind else ("norm", "f")
    model = nn.Sequential()
    for place, part in [("a", layer()), *((key, parts[key]) for key in order), ("b", layer())]:
        model.add_module(place, part)
    converted, report = convert_copy(model, x)
    found = {row.layer: row for row in report.rows}["a"]
    assert (str(found.gate), found.reason) == ("silu", "direct" if behind else "deferred to norm")
    for one, other in zip(_run(model, x), _run(converted, x), strict=True):
        assert torch.equal(one, other)
    seen_at = "a" if behind else "norm"
    check_layer(model, converted, x, "a", lambda seen: gate_slope("silu", seen[seen_at][1]))
