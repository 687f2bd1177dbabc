"""`torchnorm.convert`: what lies between a layer and its activation, and several that read it."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests.models.torch import one_thread
from parity_tests.models.torch_networks import slope
from parity_tests.tolerances import GATE, slice_error
from torchnorm.tests.conversion.nets import (
    D,
    Net,
    check_layer,
    conv,
    convert_copy,
    dense,
    images,
    norm,
    pulled,
    rows,
    step,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def wide(channels):
    """A BatchNorm."""
    return nn.BatchNorm2d(channels, dtype=D)


#: Between a convolution and its BatchNorm: (what, channels then).
BETWEEN = {
    "dropout": (lambda s, z: F.dropout(z, 0.0, training=s.training), 4),
    "cast": (lambda s, z: z.to(torch.float64).contiguous(), 4),
    "scale": (lambda s, z: z * 3.0, 4),
    "learned scale": (lambda s, z: z * s.gamma.view(1, -1, 1, 1), 4),
    "concatenation": (lambda s, z: torch.cat([torch.ones_like(z[:, :2]), z], 1), 6),
    "twice": (lambda s, z: torch.cat([z, torch.zeros_like(z[:, :1]), z], 1), 9),
    "slice": (lambda s, z: z[:, 1:3], 2),
    "crop": (lambda s, z: z[..., 1:-1, 2:], 4),
    "average": (lambda s, z: F.avg_pool2d(z, 2), 4),
    "maximum": (lambda s, z: F.max_pool2d(z, 3, stride=2, padding=1), 4),
    "adaptive": (lambda s, z: F.adaptive_max_pool2d(z, 3), 4),
    "nearest": (lambda s, z: F.interpolate(z, scale_factor=2), 4),
    "bilinear": (lambda s, z: F.interpolate(z, scale_factor=2, mode="bilinear"), 4),
    "padding": (lambda s, z: F.pad(z, (1, 0, 2, 1)), 4),
    "reflection": (lambda s, z: F.pad(z, (1, 1, 1, 1), mode="reflect"), 4),
    "shuffle": (lambda s, z: F.pixel_shuffle(z, 2), 1),
    "several": (
        lambda s, z: torch.cat([F.max_pool2d(z[:, 1:], 2), F.avg_pool2d(z, 2)], 1)[:, :3],
        3,
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_between_a_layer_and_its_normalization(name):
    between, channels = BETWEEN[name]

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.n = conv(), wide(channels)
            self.gamma = nn.Parameter(torch.linspace(0.5, 2, 4, dtype=D))

        def forward(self, x):
            return F.relu(self.n(between(self, self.c(x))))

    model = Between()
    converted, report = convert_copy(model, images())
    assert (report["c"].gate, report["c"].reason) == ("relu", "deferred to n")

    def expected(seen):
        move = functools.partial(between, model)
        if "scale" in name:  # a factor of a neuron's samples means nothing
            return (seen["n"][1] > 0).double()
        return pulled(move, seen["c"][1], (seen["n"][1] > 0).double())

    check_layer(model, converted, images(), "c", expected)
    torch.manual_seed(0)
    step(converted, torch.randn(5, 4, 6, 6, dtype=D))  # another batch than that watched


def test_dropout_is_looked_through_in_both_modes():
    model = nn.Sequential(conv(), nn.Dropout(0.5), norm(), nn.ReLU())
    for mode in (True, False):
        assert convert_copy(model.train(mode), images())[1]["0"].reason == "deferred to 2"


class DenseBlock(nn.Module):
    """As in DenseNet: every layer reads all those before it, through a BatchNorm of its own."""

    def __init__(self):
        super().__init__()
        self.c0 = conv()
        self.norms = nn.ModuleList([wide(4 + 2 * k) for k in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(4 + 2 * k, 2, 1, dtype=D) for k in range(3)])

    def forward(self, x):
        """The block."""
        found = [self.c0(x)]
        for n, c in zip(self.norms, self.convs, strict=True):
            found.append(c(F.relu(n(torch.cat(found, 1)))))
        return found[-1]


def test_densely_connected_layers_have_the_sum_of_what_reads_them():
    model = DenseBlock()
    converted, report = convert_copy(model, images())
    assert report["c0"].reason == "deferred to norms.0 and norms.1 and norms.2"
    assert report["convs.0"].reason == "deferred to norms.1 and norms.2"
    assert report["convs.1"].reason == "deferred to norms.2"
    active = lambda s, k: (s[f"norms.{k}"][1] > 0).double()  # noqa: E731
    check_layer(
        model, converted, images(), "c0", lambda s: sum(active(s, k)[:, :4] for k in range(3))
    )
    check_layer(
        model, converted, images(), "convs.0", lambda s: active(s, 1)[:, 4:] + active(s, 2)[:, 4:6]
    )


class Preactivated(nn.Module):
    """As a ResNet with activations first: every later block normalizes and activates the sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.convs = conv(), nn.ModuleList([conv(), conv()])
        self.norms = nn.ModuleList([norm(), norm(), norm()])

    def forward(self, x):
        """Run it."""
        x = self.stem(x)
        for n, c in zip(self.norms[:2], self.convs, strict=True):
            x = x + c(F.relu(n(x)))
        return F.relu(self.norms[2](x))


def test_a_residual_stream_that_every_block_activates():
    model = Preactivated()
    converted, report = convert_copy(model, images())
    assert report["stem"].reason == "deferred to norms.0 and norms.1 and norms.2"
    assert report["convs.1"].reason == "deferred to norms.2"
    active = lambda s, k: (s[f"norms.{k}"][1] > 0).double()  # noqa: E731
    check_layer(model, converted, images(), "stem", lambda s: sum(active(s, k) for k in range(3)))
    check_layer(model, converted, images(), "convs.0", lambda s: active(s, 1) + active(s, 2))


def through_a_loop(s, x):
    """Blocks that each send one embedding through the same function."""
    e = s.a(x)
    for _ in range(3):
        x = s.b(F.silu(e)) + s.c(x)
    return x


SHARED = {
    "loop": through_a_loop,
    "modules": lambda s, x: (lambda e: s.b(s.f(e)) + s.c(nn.SiLU()(e)))(s.a(x)),
    "written out": lambda s, x: (lambda e: s.b(e * e.sigmoid()) + s.c(F.silu(e)))(s.a(x)),
    "views": lambda s, x: (lambda e: s.b(F.silu(e.view(3, 4, 8)).view(12, 8)) + F.silu(e))(s.a(x)),
    "halves": lambda s, x: (lambda e: s.b(torch.cat([F.silu(e[:, :5]), F.silu(e[:, 5:])], 1)))(
        s.a(x)
    ),
    "chunks": lambda s, x: (lambda p, q: F.silu(p).repeat(1, 2) + s.f(q).repeat(1, 2))(
        *s.a(x).chunk(2, 1)
    ),
    "concatenated": lambda s, x: F.silu(torch.cat([x, s.a(x)], 1)),
}


@pytest.mark.parametrize("name", SHARED)
def test_one_output_that_several_send_through_the_same_activation(name):
    model = Net(SHARED[name], a=dense(), b=dense(), c=dense(), f=nn.SiLU())
    converted, report = convert_copy(model, rows())
    assert (report["a"].gate, report["a"].unresolved) == ("silu", False)
    assert report["a"].reason.startswith("direct")
    check_layer(model, converted, rows(), "a", lambda s: slope(F.silu, s["a"][1]))


def test_different_activations_of_one_output_have_the_sum_of_their_slopes():
    model = Net(
        lambda s, x: (lambda e: s.b(F.silu(e)) + s.c(e.tanh()))(s.a(x)),
        a=dense(), b=dense(), c=dense(),
    )  # fmt: skip
    converted, report = convert_copy(model, rows())
    assert report["a"].reason == "direct, in 2 places: the sum of their slopes"
    check_layer(
        model, converted, rows(), "a", lambda s: slope(lambda z: F.silu(z) + z.tanh(), s["a"][1])
    )
    model = Net(lambda s, x: (lambda e: F.relu(s.n(e)) + e.tanh())(s.c(x)), c=conv(), n=norm())
    converted, report = convert_copy(model, images())
    assert report["c"].reason == "deferred to n and the layer itself"
    check_layer(
        model, converted, images(), "c",
        lambda s: (s["n"][1] > 0).double() + slope(torch.tanh, s["c"][1]),
    )  # fmt: skip


def test_where_some_of_what_reads_it_is_no_activation():
    for run, reason in {
        lambda s, x: (lambda e: s.b(F.silu(e)) + s.c(e))(s.a(x)): "silu follows behind or beside",
        lambda s, x: (lambda e: (e, s.b(F.silu(e))))(s.a(x)): "silu follows, and the model returns",
        lambda s, x: F.silu(s.a(x)[:, :4]) + s.a.bias[:4]: "silu follow",
    }.items():
        report = convert_copy(Net(run, a=dense(), b=dense(), c=dense()), rows())[1]
        if report["a"].converted:
            assert report["a"].gate is None or report["a"].reason == "joint"
            assert report["a"].unresolved or report["a"].reason == "joint"
            assert reason in report["a"].reason or report["a"].reason == "joint"


def test_the_way_is_explained():
    model = nn.Sequential(
        conv(), nn.Dropout(0.1), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2, dtype=D)
    )
    report = torchnorm.convert(model, images())
    assert report.explain("0").splitlines() == [
        "0 (Conv2d)",
        "  its output -> [3, 4, 6, 6]",
        "  dropout in '1' -> [3, 4, 6, 6]",
        "  batch_norm in '2' -> [3, 4, 6, 6]",
        "  relu in '3' -> [3, 4, 6, 6]",
        "gate: relu, deferred to 2",
    ]
    assert report.explain("5").splitlines()[-2:] == [
        "  the output",
        "gate: None, no activation follows: the output",
    ]
    with pytest.raises(KeyError, match="layer: got 'x', expected one of"):
        report.explain("x")
    assert report.verdict == "2 of 2 layers with a matrix are converted"
    branched = convert_copy(DenseBlock(), images())[1]
    assert "  read in 3 places:" in branched.explain("c0")
    missed = convert_copy(
        Net(lambda s, x: (lambda z: s.b(F.relu(z)) + z)(s.a(x)), a=dense(), b=dense()), rows()
    )[1]
    assert missed.verdict == (
        "2 of 2 layers with a matrix are converted; 1 may have an activation that was not found "
        "(unresolved): see report.explain('a')"
    )
    assert str(missed).splitlines()[-1].startswith(missed.verdict)


CALLS = {
    "direct": (lambda s, x: F.relu(s.a(F.relu(s.a(x)))), "relu", "direct, in each of 2 calls"),
    "none": (lambda s, x: s.a(s.a(x)), None, "another layer; no activation follows: the out"),
    "normalized": (
        lambda s, x: s.f(s.n(s.a(s.f(s.n(s.a(x)))))), "silu", "deferred to n, in each of 2 calls",
    ),
    "others": (lambda s, x: s.a(x).tanh() + F.relu(s.a(-x)), None, "not with one gate: tanh, relu"),
    "one missed": (lambda s, x: F.relu(s.a(x) @ s.a(-x).T), None, "in one of 2 calls: relu"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_layer_that_is_called_twice_has_the_statistics_of_both_calls(name):
    run, gate, reason = CALLS[name]
    model = Net(run, a=dense(), n=nn.LayerNorm(8, dtype=D), f=nn.SiLU())
    left = convert_copy(model, rows())[1]["a"]  # each call would have its own
    assert left.reason.startswith("called 2 times in one forward pass")
    report = torchnorm.convert(model, rows())
    assert (report["a"].gate, reason in report["a"].reason) == (gate, True), report["a"]
    assert report["a"].unresolved == (name in ("others", "one missed"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = torchnorm.optim.in_neuron_coordinates(optimizer, model)
    model(rows()).sum().backward()
    gathered = model.a.neuron_stats.gathered()
    assert (gathered.calls, gathered.samples) == (2, 24)
    optimizer.step()


def test_recorded_statistics_of_two_calls_are_those_of_both_batches():
    def run(s, x):
        return sum(F.relu(s.a(part)).square().sum() for part in x.split(s.size))

    model, found = Net(run, a=dense()), []
    for size in (12, 6):
        one = copy.deepcopy(model)
        one.size = size
        torchnorm.convert(one, rows())
        optimizer = torch.optim.SGD(one.parameters(), lr=1e-3)
        optimizer = torchnorm.optim.in_neuron_coordinates(optimizer, one)
        one(rows()).backward()
        optimizer.step()
        found.append(one.a.weight - model.a.weight)
    assert slice_error(found[1].detach(), found[0].detach(), axes=(0,)) <= GATE["float64"]
