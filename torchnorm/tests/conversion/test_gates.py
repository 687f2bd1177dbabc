"""`torchnorm.convert`: which gate every layer gets."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests.models.torch import loss, one_thread
from parity_tests.models.torch_networks import slope
from parity_tests.tolerances import GATE, slice_error
from torchnorm import DEFERRED, JointGate, Rule
from torchnorm.tests.conversion.nets import (
    Bottleneck,
    D,
    LearnedSwish,
    Net,
    Sharp,
    act,
    act_module,
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


NAMED = [
    ("relu", act(F.relu)),
    ("relu", act(torch.relu)),
    ("relu", act(lambda z: z.relu_())),
    ("relu", act(lambda z: z.clamp(min=0))),
    ("relu", act(lambda z: torch.where(z > 0, z, torch.zeros_like(z)))),
    ("relu", act(lambda z: torch.maximum(z, torch.tensor(0.0, dtype=D)))),
    ("relu", act(lambda z: z * (z > 0).to(z.dtype))),
    ("relu", act_module(nn.ReLU(inplace=True))),
    ("relu", act_module(nn.Sequential(nn.Identity(), nn.ReLU(), nn.Dropout(0.2)))),
    ("relu", act(lambda z: F.dropout(z.view(3, 4, 8).transpose(0, 1), 0.1).relu().flatten(0, 1))),
    ("tanh", act(torch.tanh)),
    ("sigmoid", act(lambda z: 1 / (1 + torch.exp(-z)))),
    ("gelu", act(F.gelu)),
    ("gelu_tanh", act(lambda z: F.gelu(z, approximate="tanh"))),
    ("gelu", act(lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)))),
    ("silu", act(lambda z: z * z.sigmoid())),
    ("silu", act_module(nn.SiLU(inplace=True))),
    ("relu6", act_module(nn.ReLU6())),
    ("relu6", act_module(nn.Hardtanh(0, 6))),
    ("hardtanh", act_module(nn.Hardtanh())),
    ("elu", act_module(nn.CELU())),
    ("leaky_relu", act_module(nn.LeakyReLU())),
    ("logsigmoid", act_module(nn.LogSigmoid())),
    ("softplus", act_module(nn.Softplus())),
    ("mish", act(F.mish)),
    ("glu", Net(lambda s, x: s.b(F.glu(s.a(x))), a=dense(16), b=dense())),
]


@pytest.mark.parametrize(
    ("gate", "model"), NAMED, ids=[f"{g}-{k}" for k, (g, _) in enumerate(NAMED)]
)
def test_activations_by_name(gate, model):
    reference = copy.deepcopy(model)
    converted, report = convert_copy(model, rows())
    assert report["a"].gate == gate
    assert report["a"].reason in ("direct", "joint")
    assert report["b"].gate is None
    assert not report.unresolved
    assert torch.equal(step(converted, rows())[0], step(reference, rows())[0])


CALLABLE = {
    "leaky_relu(0.2)": (act(lambda z: F.leaky_relu(z, 0.2)), lambda z: F.leaky_relu(z, 0.2)),
    "module": (act_module(nn.LeakyReLU(0.3)), lambda z: F.leaky_relu(z, 0.3)),
    "quick": (act(lambda z: z * torch.sigmoid(1.702 * z)), lambda z: z * torch.sigmoid(1.702 * z)),
    "shifted": (act(lambda z: torch.relu(2 * z + 1)), lambda z: torch.relu(2 * z + 1)),
    "squared": (act(lambda z: torch.relu(z) ** 2), lambda z: torch.relu(z) ** 2),
    "sharp": (act_module(Sharp()), lambda z: torch.sin(z) ** 2),
    "prelu": (act_module(nn.PReLU(1, 0.4, dtype=D)), lambda z: F.leaky_relu(z, 0.4)),
    "threshold": (act_module(nn.Threshold(0.3, 2.0)), lambda z: F.threshold(z, 0.3, 2.0)),
    "learned": (act_module(LearnedSwish()), lambda z: z * torch.sigmoid(1.3 * z)),
    "abs": (act(torch.abs), torch.abs),
    "softplus": (act_module(nn.Softplus(beta=2)), lambda z: F.softplus(z, 2)),
}


@pytest.mark.parametrize("name", CALLABLE)
def test_activations_without_a_name_are_callables(name):
    model, phi = CALLABLE[name]
    converted, report = convert_copy(model, rows())
    assert callable(report["a"].gate)
    assert report["a"].reason == "direct"
    check_layer(model, converted, rows(), "a", lambda seen: slope(phi, seen["a"][1]))
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted.a))):
        layer = other if isinstance(other, nn.Linear) else other.a
        assert callable(layer.gate)
        layer(rows()).sum().backward()


def test_a_gate_that_is_a_module_follows_it_into_a_copy():
    model, _ = convert_copy(act_module(LearnedSwish()), rows())
    other = copy.deepcopy(model)
    assert other.a.gate is other.f
    assert model.a.gate is model.f


def test_normalization_before_the_activation():
    def run(s, x):
        x = s.r1(s.n1(s.c1(x)))
        return F.relu(s.n2(s.c2(x)), inplace=True)  # no module: the normalization is one

    model = Net(run, c1=conv(bias=False), n1=norm(), r1=nn.ReLU(True), c2=conv(), n2=norm())
    converted, report = convert_copy(model, images())
    assert [row.reason for row in report.rows] == ["deferred to n1", "deferred to n2"]
    assert converted.c1.gate is DEFERRED
    for name, at in (("c1", "n1"), ("c2", "n2")):
        check_layer(
            model, converted, images(), name, lambda seen, at=at: (seen[at][1] > 0).double()
        )


@pytest.mark.parametrize("early", [False, True], ids=["shortcut last", "shortcut first"])
def test_bottleneck_that_shares_one_in_place_relu(early):
    model = Bottleneck(early)
    converted, report = convert_copy(model, images())
    assert len(report.deferred) == 4
    for name, at in (("c1", "n1"), ("c2", "n2")):
        check_layer(
            model, converted, images(), name, lambda seen, at=at: (seen[at][1] > 0).double()
        )
    for name in ("c3", "down.0"):
        check_layer(model, converted, images(), name, lambda seen: (seen["block"][1] > 0).double())


class Cifar(nn.Module):
    """A block with functional relus only: the last one is seen at what the block returns."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.n1, self.n2 = conv(), conv(), norm(), norm()

    def forward(self, x):
        """The block."""
        out = F.relu(self.n1(self.c1(x)))
        return F.relu(self.n2(self.c2(out)) + x)


def test_functional_relu_behind_a_sum_is_seen_at_the_output_of_the_block():
    model = nn.Sequential(Cifar(), Cifar(), nn.Flatten(), nn.Linear(144, 3, dtype=D))
    converted, report = convert_copy(model, images())
    assert report["0.c2"].reason == "deferred to 0"
    for block in "01":
        name = f"{block}.c2"
        check_layer(
            model, converted, images(), name, lambda seen, b=block: (seen[b][1] > 0).double()
        )


def test_pooling_or_an_affine_map_between_normalization_and_activation():
    model = Net(lambda s, x: F.relu(F.max_pool2d(s.n(s.c(x)), 2)), c=conv(), n=norm())
    converted, report = convert_copy(model, images())
    assert report["c"].reason == "deferred to n"

    def pooled(z):
        return F.relu(F.max_pool2d(z, 2))

    check_layer(model, converted, images(), "c", lambda s: slope(pooled, s["n"][1]))

    def run(s, x):
        return s.f(F.dropout(2 * s.n(s.c(x)) + 1, 1e-12))  # no longer what n returns

    model = Net(run, c=conv(), n=norm(), f=Sharp())
    converted, report = convert_copy(model, images())
    assert report["c"].reason == "deferred to the input of f"
    check_layer(model, converted, images(), "c", lambda s: slope(s_sharp, s["f"][0]))
    model = Net(lambda s, x: s.f(F.max_pool2d(s.c(x), 2)), c=conv(), f=nn.PReLU(4, dtype=D))
    converted, report = convert_copy(model, images())
    assert report["c"].reason == "deferred to the input of f"
    pool = functools.partial(F.max_pool2d, kernel_size=2)
    check_layer(
        model,
        converted,
        images(),
        "c",
        lambda s: pulled(pool, s["c"][1], slope(model.f, s["f"][0])),
    )
    model = Net(lambda s, x: s.f(3 * s.c(x)), c=conv(), f=nn.PReLU(1, 0.3, dtype=D))
    converted, report = convert_copy(model, images())
    assert report["c"].reason == "deferred to the input of f"
    check_layer(model, converted, images(), "c", lambda s: slope(model.f, s["f"][0]))


def s_sharp(u):
    """As `Sharp`."""
    return torch.sin(u) ** 2


def test_a_random_activation_has_its_mean_slope_and_the_frameworks_random_numbers():
    model = act_module(nn.RReLU())
    converted, report = convert_copy(model, rows())
    assert report["a"].reason == "direct"
    assert torch.equal(step(converted, rows())[0], step(model, rows())[0])
    check = slope(lambda z: F.leaky_relu(z, (1 / 8 + 1 / 3) / 2), z := torch.randn(5, dtype=D))
    assert slice_error(slope(converted.a.gate, z), check, axes=()) <= GATE["float64"]


def test_what_no_module_shows_is_reported():
    def run(s, x):
        return s.b(torch.tanh(s.a(x) + x))

    report = convert_copy(Net(run, a=dense(), b=dense()), rows())[1]
    assert report["a"].gate is None
    assert report["a"].unresolved
    assert "unresolved: tanh sees a sum" in str(report)


class InPlaceStatement(nn.Module):
    """Changes y in place and goes on with y, not with what the activation returns."""

    def __init__(self, activation):
        super().__init__()
        self.a, self.b, self.activation = dense(), dense(), activation

    def forward(self, x):
        """Run it."""
        y = self.a(x) + x
        self.activation(y)
        return self.b(y)


def test_an_in_place_activation_whose_result_is_thrown_away():
    # Another tensor in its place would keep the change from y.
    model = InPlaceStatement(nn.ELU(inplace=True))
    converted, report = convert_copy(model, rows())
    assert report["a"].unresolved
    assert_plain_but_for_layers(model, converted, rows())
    model = InPlaceStatement(nn.ReLU(inplace=True))  # seen after the activation just as well
    converted, report = convert_copy(model, rows())
    assert report["a"].reason == "deferred to the input of b"
    assert_plain_but_for_layers(model, converted, rows())
    check_layer(model, converted, rows(), "a", lambda s: (s["b"][0] > 0).double())


def assert_plain_but_for_layers(reference, converted, x):
    """Output and input gradient are the framework's."""
    results = []
    for model in (reference, converted):
        leaf = x.clone().requires_grad_()
        out = model(leaf)
        loss(out).backward()
        results.append((out, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_layouts_between_layer_and_activation():
    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.n, self.f = conv(), nn.LayerNorm(4, dtype=D), nn.GELU()
            self.n2 = nn.LayerNorm(4, dtype=D)
            self.c2 = conv()

        def forward(self, x):
            x = self.f(self.n(self.c(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            x = self.c2(x).flatten(2).transpose(1, 2)
            return self.n2(x).gelu() if hasattr(x, "gelu") else F.gelu(self.n2(x))

    model = Permuted()
    converted, report = convert_copy(model, images())
    assert len(report.deferred) == 2
    check_layer(
        model, converted, images(), "c", lambda s: slope(F.gelu, s["n"][1]).permute(0, 3, 1, 2)
    )
    check_layer(
        model,
        converted,
        images(),
        "c2",
        lambda s: slope(F.gelu, s["n2"][1]).transpose(1, 2).reshape(3, 4, 6, 6),
    )
    torch.manual_seed(0)
    step(converted, torch.randn(5, 4, 4, 4, dtype=D))  # other sizes than those watched


def test_prelu_with_a_slope_per_channel_is_deferred():
    model = Net(lambda s, x: s.f(s.c(x)), c=conv(), f=nn.PReLU(4, dtype=D))
    with torch.no_grad():
        model.f.weight.copy_(torch.tensor([0.1, 0.5, -0.2, 2.0]))
    converted, report = convert_copy(model, images())
    assert report["c"].deferred
    check_layer(model, converted, images(), "c", lambda s: slope(model.f, s["c"][1]))


GATED = {
    "up last": lambda s, x: s.d(F.silu(s.g(x)) * s.u(x)),
    "up first": lambda s, x: s.d(s.u(x) * F.silu(s.g(x))),
    "in place": lambda s, x: s.d(s.u(x).mul_(F.silu(s.g(x), inplace=True))),
    "dropout": lambda s, x: s.d(F.dropout(F.silu(s.g(x)), 0.0) * s.u(x)),
    "kept apart": lambda s, x: (lambda g, u: s.d(u * F.silu(g)))(s.g(x), s.u(x)),
}


@pytest.mark.parametrize("name", GATED)
def test_gated_units(name):
    model = Net(GATED[name], g=dense(), u=dense(), d=dense())
    converted, report = convert_copy(model, rows())
    assert (report["g"].gate, report["u"].gate) == ("silu", None)
    assert report["g"].reason == "gated with u"
    check_layer(model, converted, rows(), "g", lambda s: slope(F.silu, s["g"][1]) * s["u"][1])
    check_layer(model, converted, rows(), "u", lambda s: F.silu(s["g"][1]))


def test_gated_units_of_two_activations_and_of_none():
    model = Net(
        lambda s, x: s.d(torch.tanh(s.a(x)) * s.b(x).sigmoid()), a=dense(), b=dense(), d=dense()
    )
    converted, _ = convert_copy(model, rows())
    check_layer(
        model, converted, rows(), "a", lambda s: slope(torch.tanh, s["a"][1]) * s["b"][1].sigmoid()
    )
    model = Net(lambda s, x: s.d(s.a(x) * s.b(x)), a=dense(), b=dense(), d=dense())
    converted, report = convert_copy(model, rows())
    assert len(report.deferred) == 2
    check_layer(model, converted, rows(), "a", lambda s: s["b"][1])


def test_gated_units_in_one_layer():
    def run(s, x):
        a, b = s.a(x).chunk(2, dim=1)
        return s.b(F.gelu(a) * b)

    model = Net(run, a=dense(16), b=dense())
    converted, report = convert_copy(model, rows())
    assert isinstance(report["a"].gate, JointGate)

    def expected(seen):
        a, b = seen["a"][1].chunk(2, -1)
        return torch.cat([slope(F.gelu, a) * b, F.gelu(a)], -1)

    check_layer(model, converted, rows(), "a", expected)
    sliced = Net(lambda s, x: s.b(split(s.a(x))), a=dense(16), b=dense())
    copied, report = convert_copy(sliced, rows())
    assert report["a"].reason == "joint"
    check_layer(sliced, copied, rows(), "a", lambda s: slope(split, s["a"][1]))
    # Statistics from some rows: all leading axes are laid in one, and 1 is no longer the last.
    x = rows().reshape(3, 4, 8)
    for text in ("1", "2"):
        net = Net(THREE_AXES[text], a=dense(16), b=dense())
        torchnorm.convert(net, x, rule=Rule(gradient="preconditioned", statistics_rows=5))
        assert isinstance(net.a.gate, JointGate)
        step(net, x)


def split(z):
    """A gated unit, in slices."""
    return z[:, :8].tanh() * z[:, 8:]


THREE_AXES = {
    "1": lambda s, x: s.b((lambda a, b: F.gelu(a) * b)(*s.a(x).split(8, dim=2))),
    "2": lambda s, x: s.b((lambda z: F.gelu(z[:, :, :8]) * z[:, :, 8:])(s.a(x))),
}


def test_pooling_before_the_activation():
    model = Net(lambda s, x: F.relu(F.max_pool2d(s.c(x), 2)), c=conv())
    converted, report = convert_copy(model, images())
    assert isinstance(report["c"].gate, JointGate)
    check_layer(
        model,
        converted,
        images(),
        "c",
        lambda s: slope(lambda z: F.relu(F.max_pool2d(z, 2)), s["c"][1]),
    )
    behind = Net(lambda s, x: F.max_pool2d(F.relu(s.c(x)), 2), c=conv())
    assert convert_copy(behind, images())[1]["c"].gate == "relu"


NONE = {
    "attention": (lambda s, x: F.softmax(s.a(x) @ s.b(x).T, -1), False),
    "sum": (lambda s, x: s.b(s.a(x) + x), False),
    "residual norm": (lambda s, x: s.b(F.layer_norm(s.a(x) + x, (8,))), False),
    "layer": (lambda s, x: s.b(s.a(x)), False),
    "loss": (lambda s, x: F.mse_loss(s.b(s.a(x)), x), False),
    "output": (lambda s, x: {"y": (s.b(s.a(x)), None)}, False),
    "one of two": (lambda s, x: (lambda z: s.b(F.relu(z)) + z)(s.a(x)), True),
    "unknown product": (lambda s, x: s.b(s.a(x) * (x * s.b.bias).exp()), True),
    "norm and chunk": (
        lambda s, x: s.b(F.glu(F.layer_norm(torch.cat([s.a(x)] * 2, -1), (16,)))),
        True,
    ),
    "unseen": (lambda s, x: s.b(Detour.apply(s.a(x))), True),
}


class Detour(torch.autograd.Function):
    """A function that the watch cannot see."""

    @staticmethod
    def forward(ctx, x):
        """Something."""
        return x.cumsum(0).cumsum(0)

    @staticmethod
    def backward(ctx, g):
        """Something else."""
        return g


@pytest.mark.parametrize("name", NONE)
def test_no_activation_follows(name):
    run, unresolved = NONE[name]
    report = convert_copy(Net(run, a=dense(), b=dense()), rows())[1]
    assert report["a"].gate is None
    assert report["a"].unresolved == unresolved, report["a"]
    assert report["a"].reason


def test_what_only_looks_on_is_no_consumer():
    logged = []

    def run(s, x):
        z = s.a(x)
        logged.append(((z > 0).double().mean(), z.detach().norm(), z.shape))
        return s.b(F.relu(z))

    assert convert_copy(Net(run, a=dense(), b=dense()), rows())[1]["a"].gate == "relu"
