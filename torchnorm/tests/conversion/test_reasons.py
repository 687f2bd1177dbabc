"""`torchnorm.convert`: where no activation is found, what the report says is true."""

import collections
import dataclasses
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

import torchnorm
from parity_tests.models.torch import one_thread
from torchnorm.tests.conversion.nets import D, Net, convert_copy, dense, rows


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


class Plain:
    """What a model returns, with attributes."""

    def __init__(self, z):
        self.z = {"z": z}


class Slotted:
    """What a model returns, with slots."""

    __slots__ = ("z",)

    def __init__(self, z):
        self.z = z


@dataclasses.dataclass
class Fields:
    """What a model returns, with a class inside."""

    inner: Plain


Pair = collections.namedtuple("Pair", "z other")

OUTPUTS = {
    "normal": lambda z: Normal(z, 1.0),
    "categorical": lambda z: Categorical(logits=z),
    "independent": lambda z: Independent(Normal(z, torch.ones_like(z)), 1),
    "transformed": lambda z: TransformedDistribution(Normal(z, 1.0), [TanhTransform()]),
    "mixture": lambda z: MixtureSameFamily(Categorical(logits=z), Normal(torch.zeros(8), 1.0)),
    "with a value": lambda z: (Categorical(logits=z), torch.zeros(())),
    "attributes": Plain,
    "slots": Slotted,
    "fields": lambda z: Fields(Plain(z)),
    "namespace": lambda z: types.SimpleNamespace(z=[z]),
    "named tuple": lambda z: Pair(z, None),
    "function": lambda z: lambda: z,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_returned_is_found_in_any_object(name):
    def run(s, x):
        return OUTPUTS[name](s.b(F.relu(s.a(x))))

    report = convert_copy(Net(run, a=dense(), b=dense()), rows())[1]
    assert report["a"].gate == "relu"
    assert report["b"].converted
    assert report["b"].reason == "no activation follows: the output"
    assert not report.unresolved


class Lazy(nn.Module):
    """Its forward pass is a generator."""

    def __init__(self):
        super().__init__()
        self.a, self.b = dense(), dense()

    def forward(self, x):
        """Yield without an end."""
        z = F.relu(self.a(x))
        yield self.b(z)
        while True:
            yield z


def test_a_generator_is_run():
    report = torchnorm.convert(Lazy(), rows())
    assert report["a"].gate == "relu"
    assert report["b"].reason == "no activation follows: the output"


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (
            lambda z: iter([z]),
            "its output is not found in the list_iterator that the model returns",
        ),
        (lambda z: z.detach(), "no gradient is seen to come back to its output"),
    ],
)
def test_what_is_not_found_is_unresolved(returned, text):
    model = Net(lambda s, x: returned(s.b(F.relu(s.a(x)))), a=dense(), b=dense())
    report = convert_copy(model, rows())[1]
    assert report["b"].unresolved
    assert text in report["b"].reason
    assert text in str(report)


EYE = torch.eye(12, dtype=D)


def twice(z):
    """Both signs."""
    return torch.cat([z, -z], 1)[:, 4:12]


#: After the layer a: what is done, and the reason.
MISSED = {
    "graph": (lambda z: F.relu(EYE @ z), "relu follows behind or beside matmul"),
    "sparse graph": (
        lambda z: torch.sparse.mm(EYE.to_sparse(), z).relu(),
        "relu follows behind or beside sparse_mm",
    ),
    "einsum": (lambda z: torch.einsum("ij,jk->ik", EYE, z).tanh(), "tanh follows behind or beside"),
    "scatter": (
        lambda z: torch.zeros(12, 8, dtype=D).index_add(0, torch.arange(12) % 4, z).relu(),
        "relu follows behind or beside index_add",
    ),
    "sine": (lambda z: twice(z).sin(), "sin follows behind or beside neg, cat"),
    "square": (lambda z: twice(z) ** 2, "pow follows behind or beside neg, cat"),
    "mask": (lambda z: (lambda y: y * (y > 0))(twice(z)), "mul follows behind or beside neg, cat"),
    "where": (lambda z: torch.where(z > 0, z, EYE[:, :8]), "where follows, in a form that is not"),
    "maximum": (lambda z: torch.max(z, EYE[:, :8]), "max follows, in a form that is not recog"),
    "attention": (lambda z: F.relu(z @ z.T)[:, :8], "relu follows behind or beside"),
    "learned": (lambda z: F.prelu(z, SLOPE), "prelu follows, in a form that is not recognized"),
}
SLOPE = torch.full((8,), 0.2, dtype=D)


@pytest.mark.parametrize("name", MISSED)
def test_an_activation_that_is_missed_is_unresolved(name):
    run, reason = MISSED[name]
    report = convert_copy(Net(lambda s, x: s.b(run(s.a(x))), a=dense(), b=dense()), rows())[1]
    assert report["a"].gate is None
    assert report["a"].unresolved
    assert reason in report["a"].reason


def test_an_activation_of_what_is_returned():
    report = convert_copy(
        Net(lambda s, x: (lambda z: (z, s.b(F.relu(z))))(s.a(x)), a=dense(), b=dense()), rows()
    )[1]
    assert report["a"].reason == "relu follows, and the model returns what it sees as well"


def rms(z):
    """A normalization, written out."""
    return z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)


#: What is no activation, or what the layer's own moments are right for.
NONE = {
    "rms": (lambda s, x: s.b(rms(s.a(x) + x)), "another layer"),
    "norm": (lambda s, x: (lambda z: s.b(z / z.norm(dim=-1, keepdim=True)))(s.a(x)), "another lay"),
    "selection": (lambda s, x: s.b(torch.where(x > 0, s.a(x), x)), "another layer"),
    "softmax": (lambda s, x: F.softmax(s.a(s.b(x)), -1), "a softmax"),
    "attention": (lambda s, x: s.b(F.softmax(s.a(x) @ s.b(x).T, -1) @ x), "attention"),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_activation(name):
    run, reason = NONE[name]
    net = Net(run, a=dense(), b=dense())
    row = convert_copy(net, rows())[1]["a"]
    if row.converted:
        assert not row.unresolved, row.reason
        assert row.reason.startswith(f"no activation follows: {reason}")
