"""`torchnorm.convert`: functions under other names, written by an index, or not known at all."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.models.torch import one_thread
from parity_tests.models.torch_networks import slope
from torchnorm.conversion import elementwise
from torchnorm.tests.conversion.nets import Net, act, check_layer, convert_copy, dense, rows


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def by_index(z):
    """ReLU in place."""
    z[z < 0] = 0
    return z


def by_number(z):
    """ReLU times a mask of numbers without a gradient."""
    return z * (z > 0).to(z.dtype).detach()


FOUND = {
    "expit": ("sigmoid", torch.special.expit),
    "fmax": ("relu", lambda z: torch.fmax(z, torch.zeros_like(z))),
    "max": ("relu", lambda z: torch.max(z, torch.zeros_like(z))),
    "by index": ("relu", by_index),
    "of a copy": ("relu", lambda z: by_index(z.clone())),
    "detached": ("relu", lambda z: z * (z.detach() > 0).to(z.dtype)),
    "data": ("relu", lambda z: z * (z.data > 0)),
    "by number": ("relu", by_number),
    "ndtr": ("gelu", lambda z: z * torch.special.ndtr(z)),
    "addcmul": ("silu", lambda z: torch.addcmul(torch.zeros_like(z), z, z.sigmoid())),
    "logaddexp2": ("zeros_like logaddexp2", lambda z: torch.logaddexp2(z, torch.zeros_like(z))),
    "arcsinh": ("asinh", torch.arcsinh),
    "sinc": ("sinc", torch.sinc),
    "lgamma": ("abs add(1) lgamma", lambda z: torch.lgamma(z.abs() + 1)),
    "polygamma": ("abs add(1) polygamma(1)", lambda z: torch.polygamma(1, z.abs() + 1)),
    "remainder": ("remainder(1.3)", lambda z: torch.remainder(z, 1.3)),
    "straight through": ("round sub detach add", lambda z: z + (z.round() - z).detach()),
}


@pytest.mark.parametrize("name", FOUND)
def test_functions_under_any_name_are_found(name):
    gate, phi = FOUND[name]
    model = act(phi)
    converted, report = convert_copy(model, rows())
    row = report["a"]
    assert getattr(row.gate, "__name__", row.gate) == gate
    assert row.reason == "direct"
    check_layer(
        model,
        converted,
        rows(),
        "a",
        lambda seen: slope(
            lambda z: phi(z * 1), (rows() @ model.a.weight.T + model.a.bias).detach()
        ),
    )


MISSED = {
    "maxout": (lambda z: z.view(-1, 4, 2).max(-1).values.repeat(1, 2), "max follows"),
    "maxout by amax": (lambda z: z.view(-1, 4, 2).amax(-1).repeat(1, 2), "amax follows"),
    "maxout by a pool": (lambda z: F.max_pool1d(z[:, None], 2)[:, 0].repeat(1, 2), "max_pool1d"),
    "sorted groups": (lambda z: z.view(-1, 4, 2).sort(-1).values.flatten(1), "sort follows"),
    "cummax": (lambda z: z.cummax(1).values, "cummax follows"),
    "part by index": (lambda z: torch.zeros_like(z).masked_scatter(z > 0, z[z > 0]), "getitem"),
    "no forward derivative": (
        lambda z: torch.special.gammainc(torch.ones_like(z), z.abs()),
        "gammainc follows, which PyTorch cannot differentiate forward",
    ),
}


@pytest.mark.parametrize("name", MISSED)
def test_what_takes_entries_for_their_size_is_unresolved(name):
    run, reason = MISSED[name]
    row = convert_copy(Net(lambda s, x: s.b(run(s.a(x))), a=dense(), b=dense()), rows())[1]["a"]
    assert row.gate is None
    assert row.unresolved
    assert reason in row.reason


UNKNOWN = {
    "alone": lambda z: torch.sinc(z),
    "behind an activation": lambda z: torch.sinc(F.relu(z)),
    "behind a layout": lambda z: torch.sinc(F.relu(z).view(3, 4, 8)).flatten(0, 1),
    "behind attention": lambda z: torch.sinc(F.softmax(z @ z.T, -1) @ z),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_function_that_is_not_known_is_unresolved(name, monkeypatch):
    known = elementwise._KNOWN - {"sinc"}
    monkeypatch.setattr(elementwise, "_KNOWN", known)
    monkeypatch.setattr(
        "torchnorm.conversion.region.ELEMENTWISE", elementwise.ELEMENTWISE - {"sinc"}
    )
    run = UNKNOWN[name]
    row = convert_copy(Net(lambda s, x: s.b(run(s.a(x))), a=dense(), b=dense()), rows())[1]["a"]
    assert row.gate is None
    assert row.unresolved
    assert row.reason == "sinc follows, a function that is not known: it may be an activation"


PASSIVE = {
    "fourier": lambda z: torch.fft.irfft(torch.fft.rfft(z), 8),
    "median": lambda z: z - z.median(1, keepdim=True).values,
    "largest": lambda z: z / z.amax(1, keepdim=True),
    "sum": lambda z: z.cumsum(1),
    "roll": lambda z: z.roll(1, 1).flip(1),
    "matrix": lambda z: z @ torch.linalg.inv(torch.eye(8, dtype=z.dtype) * 2),
    "indices": lambda z: z.gather(1, torch.arange(8).flip(0).expand(12, 8)),
}


@pytest.mark.parametrize("name", PASSIVE)
def test_what_is_known_to_be_no_activation_is_none(name):
    run = PASSIVE[name]
    row = convert_copy(Net(lambda s, x: s.b(run(s.a(x))), a=dense(), b=dense()), rows())[1]["a"]
    assert not row.unresolved
    assert row.reason == "no activation follows: another layer"


@pytest.mark.parametrize("late", [False, True])
def test_what_looks_at_a_value_later_hides_no_activation(late):
    noted = []

    def run(s, x):
        z = s.a(x)
        out = s.b(F.relu(z)) if late else None
        noted.append(((z > 0).double().mean(), z.detach()))
        return (s.b(F.relu(z)) if out is None else out), z.detach(), z > 0

    assert convert_copy(Net(run, a=dense(), b=dense()), rows())[1]["a"].gate == "relu"


def test_a_kernel_is_a_layer_whatever_its_function():
    model = Net(lambda s, x: s.b(s.a(x)), a=dense(), b=nn.Bilinear(8, 8, 3, dtype=torch.float64))
    model.run = lambda s, x: (lambda z: s.b(z, x))(s.a(x))
    assert convert_copy(model, rows())[1]["a"].reason == "no activation follows: another layer"
