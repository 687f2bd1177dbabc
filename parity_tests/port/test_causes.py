"""Every cause is found, named and confirmed, in the layer in which it was planted.

Without JAX: the side that stands for Flax is PyTorch's, under the names and in the layouts of Flax,
so that nothing is compiled. That models of Flax depart so, and are found, the self-test shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.port import checks
from parity_tests.port.checks import Setting
from parity_tests.port.diagnose import diagnose, list_layers
from parity_tests.port.links import fitted
from parity_tests.port.matching import Orders, pair
from parity_tests.port.report import Report
from parity_tests.port.sides.base import Inputs, Run
from parity_tests.port.sides.torch import TorchSide
from parity_tests.tolerances import PORT, PORT_FLOOR

LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


class _Stand:
    """A PyTorch model under the names, and with the kernels, of Flax."""

    framework, modes, drawn = "nnx", True, False

    def __init__(self, model: nn.Module) -> None:
        self.side = TorchSide(model)
        self.entries: dict[str, Any] = {}
        arrays = self.side.parameters | self.side.states
        for name, array in arrays.items():
            module, _, leaf = name.rpartition(".")
            if leaf == "num_batches_tracked":
                continue
            kind = "kernel" if array.ndim > 1 else "scale"
            if self.side.kinds[module] == "Embedding":
                kind = "embedding"
            leaf = LEAVES.get(leaf, kind)
            flax = array.shape
            if leaf == "kernel":
                flax = (*array.shape[2:], array.shape[1], array.shape[0])
            entry = fitted(leaf, flax, array.shape, name=name)
            assert entry is not None
            self.entries[f"{module}/{leaf}".replace(".", "/")] = entry
        self.parameters = self.to_flax(self.side.parameters)
        self.states = self.to_flax(self.side.states)
        self.kinds = {path.replace(".", "/"): kind for path, kind in self.side.kinds.items()}
        self.fields: dict[str, dict[str, Any]] = {}

    def to_flax(self, arrays: Any) -> Any:
        return {
            path: entry.to_flax(arrays[entry.name])
            for path, entry in self.entries.items()
            if entry.name in arrays
        }

    def to_torch(self, arrays: Any) -> Any:
        return {
            self.entries[path].name: self.entries[path].to_torch(a) for path, a in arrays.items()
        }

    def run(
        self, parameters: Any, states: Any, inputs: Any, *, given: Any = None, **options: Any
    ) -> Run:
        def back(key: Any) -> Any:
            return key[0].replace("/", "."), key[1]

        given = {back(key): each for key, each in (given or {}).items()}
        run = self.side.run(
            self.to_torch(parameters), self.to_torch(states), inputs, given=given, **options
        )
        for call in run.calls:
            call.key = (call.key[0].replace(".", "/"), call.key[1])
            if call.parent:
                call.parent = (call.parent[0].replace(".", "/"), call.parent[1])
        run.states = self.to_flax(run.states)
        run.parameter_gradients = self.to_flax(run.parameter_gradients)
        run.given_gradients = {
            (path.replace(".", "/"), n): each for (path, n), each in run.given_gradients.items()
        }
        return run


def compared(flax: nn.Module, torch_model: nn.Module, x: np.ndarray, **gates: Any) -> Report:
    """A report on two models of PyTorch, the first in the place of Flax."""
    ours, theirs = _Stand(flax), TorchSide(torch_model)
    inputs = Inputs((x,))
    plain = (
        ours.run(ours.parameters, ours.states, inputs, train=False),
        theirs.run(theirs.parameters, theirs.states, inputs, train=False),
    )
    orders = Orders(plain[0].order, plain[1].order, plain[0].wires, plain[1].wires)
    pairing = pair(ours, theirs, orders=orders)
    setting = Setting(
        ours,
        theirs,
        "torch",
        pairing,
        (inputs, inputs),
        {},
        PORT["float64"],
        PORT_FLOOR["float64"],
        "float64",
        names=["output"],
        selected=([0], [0]),
        plain=plain,
    )
    checks.align_outputs(setting, *plain)
    report = Report("nnx", "torch", "float64")
    setting.parameters = (
        pairing.to_flax(ours, theirs.parameters, state=False) | gates.get("parameters", {}),
        theirs.parameters,
    )
    setting.states = (pairing.to_flax(ours, theirs.states, state=True), theirs.states)
    report.checks += checks.spare(setting)
    for mode in ("eval", "train"):
        report.checks += checks.one_mode(setting, mode)
    report.checks += checks.several_passes(setting, 2)
    list_layers(setting, report)
    diagnose(setting, report)
    return report


class _Net(nn.Module):
    """A layer that may have a fault between two that have none."""

    def __init__(self, layer: Any, wide: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.first = nn.Conv2d(3, 4, 3, padding=1) if wide else nn.Linear(6, 6)
        self.last = nn.Conv2d(4, 2, 1) if wide else nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.last(self.layer(self.first(x)))


class _Apply(nn.Module):
    """A function as a layer, or with the layers that it is given."""

    def __init__(self, function: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Any) -> Any:
        return self.function(x, *self.layers)


def attention(scale: float | None = None, causal: bool = False) -> Any:
    def function(x: Any, project: Any) -> Any:
        q, k, v = project(x)[:, None].chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)[:, 0]

    return _Apply(function, nn.Linear(6, 18))


def by_hand(factor: float = 6**-0.5, dim: int = -1) -> Any:
    def function(x: Any, project: Any) -> Any:
        q, k, v = project(x).chunk(3, -1)
        return ((q @ k.transpose(-1, -2)) * factor).softmax(dim) @ v

    return _Apply(function, nn.Linear(6, 18))


def hand_gelu(x: Any) -> Any:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def same_padded(x: Any, convolution: Any) -> Any:
    return convolution(F.pad(x, (0, 1, 0, 1)))


class _Transposed(nn.Linear):
    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight.T, self.bias)


class _Flipped(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        return F.conv2d(x, self.weight.flip(2, 3), self.bias, padding=1)


class _Unbiased(nn.BatchNorm2d):
    def forward(self, x: Any) -> Any:
        if not self.training:
            return super().forward(x)
        super().forward(x)
        variance, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
        y = (x - mean) / (variance + self.eps).sqrt()
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class _Same(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class _Single(nn.Linear):
    def forward(self, x: Any) -> Any:
        return F.linear(x.float(), self.weight.float(), self.bias.float()).double()


def flattened(x: Any, dense: Any) -> Any:
    return dense(x.flatten(1))


def flattened_last(x: Any, dense: Any) -> Any:
    return dense(x.permute(0, 2, 3, 1).flatten(1))


def skipping(x: Any, dense: Any) -> Any:
    return x + dense(x)


def stopped(x: Any) -> Any:
    return torch.tanh(x.detach())


#: name of the cause, the faulty layer, the right one, whether they read images, the layer's path.
FAULTS: list[tuple[str, Any, Any, bool, str]] = [
    ("epsilon", nn.LayerNorm(6, 1e-6), nn.LayerNorm(6), False, "layer"),
    ("epsilon", nn.BatchNorm2d(4, 1e-3), nn.BatchNorm2d(4), True, "layer"),
    ("bias missing", nn.Linear(6, 6, bias=False), nn.Linear(6, 6), False, "layer"),
    ("bias missing", nn.Linear(6, 6), nn.Linear(6, 6, bias=False), False, "layer"),
    (
        "momentum inverted",
        nn.BatchNorm2d(4, momentum=0.7),
        nn.BatchNorm2d(4, momentum=0.3),
        True,
        "layer",
    ),
    ("momentum", nn.BatchNorm2d(4, momentum=0.01), nn.BatchNorm2d(4), True, "layer"),
    ("number of groups", nn.GroupNorm(1, 4), nn.GroupNorm(2, 4), True, "layer"),
    ("unbiased variance", _Unbiased(4), nn.BatchNorm2d(4), True, "layer"),
    ("normalization axis", by_hand(dim=-2), by_hand(), False, "layer"),
    ("GELU variant", nn.GELU("tanh"), nn.GELU(), False, ""),
    ("GELU variant", nn.GELU(), _Apply(hand_gelu), False, ""),
    ("negative slope", nn.LeakyReLU(0.2), nn.LeakyReLU(0.01), False, ""),
    ("activation", nn.ReLU(), nn.SiLU(), False, ""),
    ("padding", _Same(4, 4, 3, 2), nn.Conv2d(4, 4, 3, 2, 1), True, "layer"),
    (
        "padding",
        _Apply(same_padded, nn.Conv2d(4, 4, 3, 2)),
        nn.Conv2d(4, 4, 3, 2, 1),
        True,
        "layer",
    ),
    ("dilation", nn.Conv2d(4, 4, 3, 1, 2, 2), nn.Conv2d(4, 4, 3, 1, 1), True, "layer"),
    (
        "count_include_pad",
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(3, 1, 1),
        True,
        "",
    ),
    ("pooling", nn.AvgPool2d(2), nn.MaxPool2d(2), True, ""),
    ("transposed kernel", _Transposed(6, 6), nn.Linear(6, 6), False, "layer"),
    ("flipped kernel", _Flipped(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), True, "layer"),
    ("attention scale", attention(1.0), attention(), False, "layer"),
    ("attention scale", by_hand(1 / 6), by_hand(), False, "layer"),
    ("causal mask", attention(), attention(causal=True), False, "layer"),
    (
        "channel order before a flatten",
        _Apply(flattened_last, nn.Linear(192, 6)),
        _Apply(flattened, nn.Linear(192, 6)),
        True,
        "layer",
    ),
    (
        "resizing",
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=2),
        True,
        "",
    ),
    (
        "residual missing",
        _Apply(lambda x, f: f(x), nn.Linear(6, 6)),
        _Apply(skipping, nn.Linear(6, 6)),
        False,
        "layer",
    ),
    ("constant factor", _Apply(lambda x: 3 * x), nn.Identity(), False, ""),
    ("gradient stopped", _Apply(stopped), nn.Tanh(), False, ""),
    ("gradient stopped", nn.Tanh(), _Apply(stopped), False, ""),
    ("dtype", _Single(6, 6), nn.Linear(6, 6), False, "layer"),
]


def _named(case: Any) -> str:
    return f"{case[0]}: {type(case[1]).__name__}"


@pytest.mark.parametrize(
    ("name", "faulty", "right", "wide", "path"), FAULTS, ids=map(_named, FAULTS)
)
def test_a_fault_is_found_and_named(name, faulty, right, wide, path):
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 6) if wide else (2, 5, 6))
    nets = []
    for layer in (faulty, right):
        net = _Net(layer, wide).double()
        if "flatten" in name:
            net.last = nn.Linear(6, 2).double()
        for p in net.parameters():
            nn.init.normal_(p)
        nets.append(net)
    report = compared(*nets, x)
    assert not report.agree
    first = report.first
    assert first is not None
    assert [f.name for f in first.findings] == [name], str(report)
    assert all(f.confirmed for f in first.findings)
    assert first.torch == path


def test_the_same_model_twice_agrees():
    x = np.random.default_rng(0).normal(size=(5, 3, 6, 5))
    report = compared(_Net(nn.BatchNorm2d(4), True), _Net(nn.BatchNorm2d(4), True), x)
    assert report.agree
    assert report.first is None
    assert {layer.status for layer in report.layers} == {"ok"}


class _Block(nn.Module):
    """Two layers, with or without the activation behind them."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.a, self.b, self.activation = nn.Linear(6, 6), nn.Linear(6, 6), activation

    def forward(self, x: Any) -> Any:
        return self.activation(self.b(torch.tanh(self.a(x))))


def test_modules_that_hold_the_same_but_end_elsewhere_are_no_pair():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 5, 6))
    blocks = nn.Sequential(_Block(F.gelu), _Block(F.gelu))
    bare = nn.Sequential(_Block(nn.Identity()), nn.GELU(), _Block(nn.Identity()), nn.GELU())
    assert compared(_Net(bare), _Net(blocks), x).agree
    bare[3] = nn.GELU("tanh")
    report = compared(_Net(bare), _Net(blocks), x)
    assert [finding.name for finding in report.causes] == ["GELU variant"], str(report)
    assert report.first.torch == "layer"


def test_an_unknown_fault_is_found_and_not_named():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 5, 6))
    report = compared(_Net(_Apply(lambda x: torch.sin(2 * x))), _Net(nn.Tanh()), x)
    assert report.first is not None
    assert not report.first.findings
    assert "none of those that are known repairs it" in str(report)


class _Ids(nn.Module):
    """Rows of a table, by numbers that something is done to before."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.embed, self.function = nn.Embedding(9, 4), function

    def forward(self, ids: Any) -> Any:
        return self.embed(self.function(ids))


def test_integers_that_depart_are_of_the_layer_around():
    ids = np.random.default_rng(0).integers(0, 9, (2, 5))
    same = _Ids(lambda ids: ids)
    assert compared(same, same, ids).agree
    report = compared(_Ids(lambda ids: ids.flip(1)), same, ids)
    assert (report.first.flax, report.first.torch) == ("", "")
    assert [check.subject for check in report.first.departs[:1]] == ["what reaches embed = embed"]
