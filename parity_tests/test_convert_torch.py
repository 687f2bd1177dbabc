"""`torchnorm.convert`: which gate every layer gets, and that nothing else of a model changes."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.models_torch import expected_gradients, loss, one_thread, slope, spy
from parity_tests.tolerances import GATE, VISIBLE, slice_error
from torchnorm import OBSERVED, JointGate, Rule

D = torch.float64


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


class Net(nn.Module):
    """A network whose forward is given: run(self, x)."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        """Run it."""
        return self.run(self, x)


def dense(width=8, **kwargs):
    return nn.Linear(8, width, dtype=D, **kwargs)


def conv(channels=4, **kwargs):
    return nn.Conv2d(4, channels, 3, padding=1, dtype=D, **kwargs)


def norm():
    return nn.BatchNorm2d(4, dtype=D)


def rows():
    torch.manual_seed(3)
    return torch.randn(12, 8, dtype=D) * 2 + 1


def images():
    torch.manual_seed(3)
    return torch.randn(3, 4, 6, 6, dtype=D)


def step(model, x):
    """(output, gradients)."""
    model.zero_grad()
    torch.manual_seed(0)
    out = model(x)
    loss(out).backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def check_layer(host, converted, x, name, slope_of):
    """The layer's gradients are the oracle's under the slope that the function finds."""
    host = copy.deepcopy(host)
    seen, errors = spy(host, (x,))
    s = slope_of(seen)
    kernel, bias = expected_gradients(host.get_submodule(name), seen[name][0], errors[name], s)
    gradients = step(converted, x)[1]
    ours = gradients[f"{name}.weight"].flatten(1)
    assert slice_error(ours, kernel, axes=(0,)) <= GATE["float64"]
    if bias is not None:
        assert slice_error(gradients[f"{name}.bias"], bias, axes=()) <= GATE["float64"]


def convert_copy(model, x, **kwargs):
    model = copy.deepcopy(model)
    return model, torchnorm.convert(model, x, **kwargs)


class LearnedSwish(nn.Module):
    """An activation with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.3, dtype=D))

    def forward(self, x):
        """Apply it."""
        return x * torch.sigmoid(self.beta * x)


class Sharp(nn.Module):
    """An activation without a name."""

    def forward(self, x):
        """Apply it."""
        return torch.sin(x) ** 2


def act(f):
    return Net(lambda s, x: s.b(f(s.a(x))), a=dense(), b=dense())


def act_module(module):
    return Net(lambda s, x: s.b(s.f(s.a(x))), a=dense(), f=module, b=dense())


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
    host = copy.deepcopy(model)
    converted, report = convert_copy(model, rows())
    assert report["a"].gate == gate
    assert report["a"].how in ("direct", "joint")
    assert report["b"].gate is None
    assert not report.unresolved
    assert torch.equal(step(converted, rows())[0], step(host, rows())[0])


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
    assert report["a"].how == "direct"
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


def test_normalisation_before_the_activation():
    def run(s, x):
        x = s.r1(s.n1(s.c1(x)))
        return F.relu(s.n2(s.c2(x)), inplace=True)  # no module: the normalisation is one

    model = Net(run, c1=conv(bias=False), n1=norm(), r1=nn.ReLU(True), c2=conv(), n2=norm())
    converted, report = convert_copy(model, images())
    assert [row.how for row in report.rows] == ["observed at n1", "observed at n2"]
    assert converted.c1.gate is OBSERVED
    for name, at in (("c1", "n1"), ("c2", "n2")):
        check_layer(
            model, converted, images(), name, lambda seen, at=at: (seen[at][1] > 0).double()
        )


@pytest.mark.parametrize("early", [False, True], ids=["shortcut last", "shortcut first"])
def test_bottleneck_that_shares_one_in_place_relu(early):
    model = Bottleneck(early)
    converted, report = convert_copy(model, images())
    assert len(report.observed) == 4
    for name, at in (("c1", "n1"), ("c2", "n2")):
        check_layer(
            model, converted, images(), name, lambda seen, at=at: (seen[at][1] > 0).double()
        )
    for name in ("c3", "down.0"):
        check_layer(model, converted, images(), name, lambda seen: (seen["block"][1] > 0).double())


class Bottleneck(nn.Module):
    """As torchvision writes it: one in-place relu, called three times, and a functional sum."""

    def __init__(self, early):
        super().__init__()
        self.early = early
        self.c1, self.c2, self.c3 = (conv(bias=False) for _ in range(3))
        self.n1, self.n2, self.n3 = norm(), norm(), norm()
        self.down = nn.Sequential(conv(bias=False), norm())
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Identity()

    def forward(self, x):
        """The block."""
        shortcut = self.down(x) if self.early else None
        out = self.relu(self.n1(self.c1(x)))
        out = self.relu(self.n2(self.c2(out)))
        out = self.n3(self.c3(out))
        out += self.down(x) if shortcut is None else shortcut
        return self.block(self.relu(out))


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
    assert report["0.c2"].how == "observed at 0"
    for block in "01":
        name = f"{block}.c2"
        check_layer(
            model, converted, images(), name, lambda seen, b=block: (seen[b][1] > 0).double()
        )


def test_pooling_or_an_affine_map_between_normalisation_and_activation():
    model = Net(lambda s, x: F.relu(F.max_pool2d(s.n(s.c(x)), 2)), c=conv(), n=norm())
    converted, report = convert_copy(model, images())
    assert report["c"].how == "observed at n"

    def pooled(z):
        return F.relu(F.max_pool2d(z, 2))

    check_layer(model, converted, images(), "c", lambda s: slope(pooled, s["n"][1]))

    def run(s, x):
        return s.f(F.dropout(2 * s.n(s.c(x)) + 1, 1e-12))  # no longer what n returns

    model = Net(run, c=conv(), n=norm(), f=Sharp())
    converted, report = convert_copy(model, images())
    assert report["c"].how == "observed at the input of f"
    check_layer(model, converted, images(), "c", lambda s: slope(s_sharp, s["f"][0]))
    model = Net(lambda s, x: s.f(F.max_pool2d(s.c(x), 2)), c=conv(), f=nn.PReLU(4, dtype=D))
    assert convert_copy(model, images())[1]["c"].unresolved
    model = Net(lambda s, x: s.f(3 * s.c(x)), c=conv(), f=nn.PReLU(1, 0.3, dtype=D))
    converted, report = convert_copy(model, images())
    assert report["c"].how == "observed at the input of f"
    check_layer(model, converted, images(), "c", lambda s: slope(model.f, s["f"][0]))


def s_sharp(u):
    """As `Sharp`."""
    return torch.sin(u) ** 2


def test_a_random_activation_has_its_mean_slope_and_the_hosts_random_numbers():
    model = act_module(nn.RReLU())
    converted, report = convert_copy(model, rows())
    assert report["a"].how == "direct"
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
    # An observed tensor in its place would keep the change from y.
    model = InPlaceStatement(nn.ELU(inplace=True))
    converted, report = convert_copy(model, rows())
    assert report["a"].unresolved
    assert_host_but_for_layers(model, converted, rows())
    model = InPlaceStatement(nn.ReLU(inplace=True))  # seen after the activation just as well
    converted, report = convert_copy(model, rows())
    assert report["a"].how == "observed at the input of b"
    assert_host_but_for_layers(model, converted, rows())
    check_layer(model, converted, rows(), "a", lambda s: (s["b"][0] > 0).double())


def assert_host_but_for_layers(host, converted, x):
    """Output and input gradient are the host's."""
    results = []
    for model in (host, converted):
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
    assert len(report.observed) == 2
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


def test_prelu_with_a_slope_per_channel_is_observed():
    model = Net(lambda s, x: s.f(s.c(x)), c=conv(), f=nn.PReLU(4, dtype=D))
    with torch.no_grad():
        model.f.weight.copy_(torch.tensor([0.1, 0.5, -0.2, 2.0]))
    converted, report = convert_copy(model, images())
    assert report["c"].observed
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
    assert report["g"].how == "gated with u"
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
    assert len(report.observed) == 2
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
    assert report["a"].how == "joint"
    check_layer(sliced, copied, rows(), "a", lambda s: slope(split, s["a"][1]))
    # Statistics from some rows: all leading axes are laid in one, and 1 is no longer the last.
    x = rows().reshape(3, 4, 8)
    for text in ("1", "2"):
        net = Net(THREE_AXES[text], a=dense(16), b=dense())
        torchnorm.convert(net, x, rule=Rule(statistics_rows=5))
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
    "two consumers": (lambda s, x: (lambda z: s.b(F.relu(z)) + z.tanh())(s.a(x)), True),
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
    assert report["a"].how


def test_what_only_looks_on_is_no_consumer():
    logged = []

    def run(s, x):
        z = s.a(x)
        logged.append(((z > 0).double().mean(), z.detach().norm(), z.shape))
        return s.b(F.relu(z))

    assert convert_copy(Net(run, a=dense(), b=dense()), rows())[1]["a"].gate == "relu"


def test_left_alone_with_a_reason():
    class Subclass(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "twice": dense(),
            "never": dense(),
            "tied": dense(),
            "alias": dense(),
            "normed": nn.utils.parametrizations.weight_norm(dense()),
            "sub": Subclass(8, 8, dtype=D),
            "frozen": dense().requires_grad_(False),
            "used": dense(),
            "ours": torchnorm.Linear(8, 8, gate="relu", dtype=D),
            "complex": nn.Linear(8, 8, dtype=torch.complex128),
            "patched": dense(),
            "good": dense(),
            "embedding": nn.Embedding(3, 8, dtype=D),
            "rnn": nn.GRU(8, 8, dtype=D),
            "mha": nn.MultiheadAttention(8, 2, dtype=D),
            "skipped": nn.Sequential(dense()),
        }
    )
    model["alias"].weight = model["tied"].weight
    model["patched"].forward = model["patched"].forward

    def run(s, x):
        m = s.m
        for name in ("twice", "twice", "tied", "alias", "normed", "sub", "frozen", "used", "ours"):
            x = m[name](x)
        x = F.linear(x, m["used"].weight) + m["complex"](x.to(torch.complex128)).real
        x = m["good"](m["patched"](m["skipped"](x))) + m["embedding"].weight[0]
        return m["mha"](*[m["rnn"](x)[0]] * 3)[0]

    report = torchnorm.convert(Net(run, m=model), rows(), skip="m.skipped")
    why = {row.layer.removeprefix("m."): row.how for row in report.left}
    expected = {
        "twice": "called 2 times in one forward pass",
        "never": "not called in the watched pass",
        "tied": "its weight is shared with m.alias",
        "alias": "its weight is shared with m.tied",
        "normed": "its weight is computed (parametrised)",
        "sub": "a subclass, which may have a forward of its own",
        "frozen": "frozen (requires_grad=False)",
        "used": "its weight is used outside of it, too",
        "ours": "a layer of torchnorm already",
        "complex": "its weight has dtype complex128",
        "patched": "its forward was replaced",
        "embedding": "no dense or convolutional layer",
        "rnn": "its kernels are fused",
        "mha": "its kernels are fused",
        "mha.out_proj": "a subclass, which may have a forward of its own",
        "skipped.0": "skipped",
    }
    assert why == expected
    assert [row.layer for row in report.converted] == ["m.good"]
    text = str(report)
    assert len({line.index("Linear") for line in text.splitlines() if " Linear " in line}) == 1
    assert text.endswith("1 layer converted (0 observed, 0 unresolved), 16 left alone; Rule()")


def test_layers_that_train_mode_drops_are_found_in_eval_mode():
    def run(s, x):
        return s.b(x) if s.training else s.b(F.relu(s.a(x)))

    report = convert_copy(Net(run, a=dense(), b=dense()), rows())[1]
    assert report["a"].gate == "relu"
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU())
    assert convert_copy(model, torch.ones(1, 8))[1]["0"].gate == "relu"  # train mode raises


def everything(model):
    """All there is to compare before and after."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [
        (type(m), {k: list(v) if isinstance(v, dict) else v for k, v in vars(m).items()})
        for m in model.modules()
    ]
    return state, parts, torch.get_rng_state(), [p.grad for p in model.parameters()]


def same(before, after):
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert len(before[1]) == len(after[1])
    for (kind, a), (other, b) in zip(before[1], after[1], strict=True):
        assert kind is other
        assert a == b
    assert torch.equal(before[2], after[2])
    assert all(a is b for a, b in zip(before[3], after[3], strict=True))


def stateful():
    def run(s, x):
        s.calls = s.calls + 1
        s.seen.append(1)
        x = F.dropout(s.n(s.a(x)), 0.5, s.training)
        if x.shape[0] == 5:
            raise KeyError("five")
        return s.b(F.relu(x))

    model = Net(run, a=dense(), n=nn.BatchNorm1d(8, dtype=D), b=dense())
    model.calls, model.seen = 0, []
    model.n.eval()
    model.b.register_forward_hook(lambda *_: None)
    step(model, rows())
    return model


def test_watching_changes_nothing_and_revert_gives_the_original_back():
    model = stateful()
    x = rows()
    before = everything(model)
    report = torchnorm.convert(model, x)
    assert len(report.converted) == 2
    assert torch.equal(torch.get_rng_state(), before[2])
    assert model.calls == 1
    assert model.n.training is False
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert [p.grad for p in model.parameters()] == before[3]
    torchnorm.revert(model)
    same(before, everything(model))


def test_a_pass_that_breaks_off_changes_nothing_either():
    model = stateful()
    before = everything(model)
    with pytest.raises(
        ValueError, match=r"example_input: got tensors of shapes \[\(5, 8\)\]"
    ) as info:
        torchnorm.convert(model, torch.zeros(5, 8, dtype=D))
    assert isinstance(info.value.__cause__, KeyError)
    same(before, everything(model))
    with pytest.raises(ValueError, match="expected an input that Net runs on"):
        torchnorm.convert(model, torch.zeros(12, 7, dtype=D))
    same(before, everything(model))


def compiled():
    return torch.compile(nn.Sequential(dense()), backend="eager")


def converted():
    model = nn.Sequential(dense())
    torchnorm.convert(model, rows())
    return model


X = torch.zeros(2, 8, dtype=D)
ERRORS = {
    "no module": (lambda: torchnorm.convert(3), TypeError, "model: got int"),
    "no layer": (
        lambda: torchnorm.convert(nn.Embedding(3, 2)),
        ValueError,
        "without a layer to conv",
    ),
    "twice": (lambda: torchnorm.convert(converted(), X), ValueError, "converted already"),
    "no example": (lambda: torchnorm.convert(dense()), ValueError, "example_input: got None"),
    "compiled": (lambda: torchnorm.convert(compiled(), X), ValueError, "before torch.compile"),
    "lazy": (lambda: torchnorm.convert(nn.LazyLinear(3), X), ValueError, "run one batch"),
    "parallel": (
        lambda: torchnorm.convert(nn.DataParallel(dense()), X),
        ValueError,
        "before wrapping it in DataParallel",
    ),
    "rule": (lambda: torchnorm.convert(dense(), X, rule="x"), TypeError, "rule: got 'x'"),
    "gates": (lambda: torchnorm.convert(dense(), X, gates=3), TypeError, "gates: got 3"),
    "gate": (lambda: torchnorm.convert(dense(), gates={"": "relo"}), ValueError, "'relo'"),
    "observed": (lambda: torchnorm.convert(dense(), gates={"": OBSERVED}), ValueError, "OBSERVED"),
    "pattern": (
        lambda: torchnorm.convert(nn.Sequential(dense()), gates={"x*": None}),
        ValueError,
        "'x\\*', which matches no layer",
    ),
    "skip": (lambda: torchnorm.convert(dense(), X, skip="x"), ValueError, "skip: got 'x'"),
    "skip type": (lambda: torchnorm.convert(dense(), X, skip=(3,)), TypeError, "skip: got 3"),
    "computed": (
        lambda: torchnorm.convert(
            nn.Sequential(prune.identity(dense(), "weight"), dense()), gates={"*": None}
        ),
        ValueError,
        "its weight is computed",
    ),
    "revert": (lambda: torchnorm.revert(dense()), ValueError, "without a converted layer"),
    "revert no module": (lambda: torchnorm.revert(3), TypeError, "model: got int"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, kind, text = ERRORS[name]
    with pytest.raises(kind, match=text):
        call()


def test_gates_by_name():
    model = nn.Sequential(dense(), nn.Tanh(), dense(), nn.ReLU(), dense())
    model[2].weight = model[4].weight
    model[0].requires_grad_(False)
    report = torchnorm.convert(model, gates={"0": "tanh", "[12]": "relu"}, rule=Rule(scale="layer"))
    assert [(r.layer, r.gate, r.converted) for r in report.rows] == [
        ("0", "tanh", True),
        ("2", "relu", True),
        ("4", None, False),
    ]
    assert model[0].rule == Rule(scale="layer")
    assert "Rule(scale='layer')" in str(report)
    torchnorm.revert(model)
    assert type(model[0]) is nn.Linear


def test_the_root_may_be_the_layer_and_examples_come_in_every_form():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = dense()

        def forward(self, x, *, scale):
            return self.a(x * scale).relu()

        @property
        def dummy_inputs(self):
            return {"x": rows(), "scale": 2}

    layer = dense()
    assert torchnorm.convert(layer, rows()).rows[0].layer == ""
    assert type(layer) is torchnorm.Linear
    torchnorm.revert(layer)
    assert torchnorm.convert(Two(), {"x": rows(), "scale": 2})["a"].gate == "relu"
    assert torchnorm.convert(Two())["a"].gate == "relu"
    assert torchnorm.convert(nn.Sequential(dense()), (rows(),))["0"].gate is None


def test_skip_by_name_pattern_and_type():
    def model():
        return nn.Sequential(nn.Sequential(dense(), dense()), conv(), dense())

    def left(skip):
        torch.manual_seed(0)
        net = model()
        net[1] = nn.Identity()
        report = torchnorm.convert(net, rows(), skip=skip)
        return [row.layer for row in report.left]

    assert left("0") == ["0.0", "0.1"]
    assert left(["0.1"]) == ["0.1"]
    assert left(["?.?"]) == ["0.0", "0.1"]
    assert left(nn.Sequential) == ["0.0", "0.1", "2"]
    assert left((nn.Identity,)) == []


def kinds():
    """A network with observed, gated, joint and plain layers."""
    torch.manual_seed(5)

    parts = {"g": dense(), "u": dense(), "d": dense(), "j": dense(16), "out": dense()}
    return Network(Bottleneck(True), parts)


class Network(nn.Module):
    """See `kinds`: without a closure, so that it can be pickled."""

    def __init__(self, block, parts):
        super().__init__()
        self.block = block
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        """Run it."""
        x = self.block(x).flatten(1)[:, :8]
        x = self.d(F.silu(self.g(x)) * self.u(x))
        a, b = self.j(x).chunk(2, -1)
        return self.out(a * torch.sigmoid(b))


def assert_same_step(model, other, gate=0.0):
    (out, found), (expected_out, expected) = step(model, images()), step(other, images())
    assert slice_error(out, expected_out, axes=()) <= gate
    found = {name.removeprefix("module."): value for name, value in found.items()}
    for name in expected:
        assert slice_error(found[name], expected[name], axes=(0,)) <= gate, name


def test_copies_pickles_and_checkpoints():
    model, report = convert_copy(kinds(), images())
    assert len(report.observed) == 6
    reference = copy.deepcopy(model)
    step(reference, images())  # a copy of a model that has run
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=False)
    for other in (copy.deepcopy(reference), pickle.loads(pickle.dumps(reference)), saved):
        assert_same_step(other, model)
        assert list(other.state_dict()) == list(kinds().state_dict())
    plain = kinds()
    plain.load_state_dict(model.state_dict(), strict=True)
    plain_gradients = step(plain, images())[1]
    ours = step(model, images())[1]
    assert slice_error(ours["block.c3.weight"], plain_gradients["block.c3.weight"]) > VISIBLE
    one = copy.deepcopy(model)
    step(one, images())
    torchnorm.revert(one)
    for (_, a), (_, b) in zip(one.named_modules(), plain.named_modules(), strict=True):
        assert type(a) is type(b)
        assert set(vars(a)) == set(vars(b))


def test_functional_call():
    model, _ = convert_copy(kinds(), images())
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def run(parameters):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        return loss(torch.func.functional_call(model, (parameters, buffers), (images(),)))

    gradients = torch.func.grad(run)(parameters)
    expected = step(model, images())[1]
    for name in expected:
        assert slice_error(gradients[name], expected[name], axes=(0,)) <= GATE["float64"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    torch.compiler.reset()
    x, model = images(), kinds()
    if backend == "inductor":  # which compiles for long
        x, model = rows(), nn.Sequential(dense(), nn.LayerNorm(8, dtype=D), nn.ReLU(), dense())
    model, report = convert_copy(model, x)
    assert report.observed
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    for _ in range(2):
        model.zero_grad()
        other.zero_grad()
        loss(model(x)).backward()
        loss(compiled(x)).backward()
        for (name, p), (_, q) in zip(
            model.named_parameters(), other.named_parameters(), strict=True
        ):
            assert slice_error(q.grad, p.grad, axes=(0,)) <= 1e-12, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    def run(s, x):
        x = checkpoint(s.net.block, x, use_reentrant=reentrant)
        x = x.flatten(1)[:, :8]
        return checkpoint(s.tail, x, use_reentrant=reentrant)

    def tail(s, x):
        return s.net.out(s.net.d(F.silu(s.net.g(x)) * s.net.u(x)))

    model = Net(run, net=kinds())
    model.tail = lambda x: tail(model, x)
    x = images().requires_grad_()
    report = torchnorm.convert(model, x)
    assert len(report.observed) == 6
    gradients = []
    for active in (True, False):
        if not active:
            model.run = lambda s, x: s.tail(s.net.block(x).flatten(1)[:, :8])
        model.zero_grad()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
        loss(model(x)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        assert torch.equal(gradients[0][name], gradients[1][name]), name


def test_checkpointing_the_layer_only():
    def run(s, x):
        x = checkpoint(s.c, x, use_reentrant=False) if s.active else s.c(x)
        return F.relu(s.n(x))

    model = Net(run, c=conv(), n=norm())
    gradients = []
    for active in (True, False, True):
        model.active = active
        if not gradients:
            torchnorm.convert(model, images())
        gradients.append(step(model, images())[1]["c.weight"])
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_data_parallel(tmp_path):
    import torch.distributed as dist

    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model, _ = convert_copy(kinds(), images())
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        assert_same_step(wrapped, model)
        with pytest.raises(ValueError, match="before wrapping it in DDP"):
            torchnorm.convert(wrapped, images())
    finally:
        dist.destroy_process_group()


def test_a_pass_that_broke_off_leaves_no_probe_behind():
    model, _ = convert_copy(kinds(), images())
    expected = step(copy.deepcopy(model), images())[1]
    model.block.n3.register_forward_hook(stop := Stop())
    with pytest.raises(InterruptedError):
        model(images()[:2])
    stop.off = True
    found = step(model, images())[1]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.no_grad():
        model(images())
    model.eval()(images())


class Stop:
    """Breaks off."""

    off = False

    def __call__(self, *_):
        """The hook."""
        if not self.off:
            raise InterruptedError


def test_autocast_is_the_hosts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    converted, _ = convert_copy(model, torch.randn(4, 8))
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = converted(x), model(x)
    assert torch.equal(out, expected)
    assert out.dtype == expected.dtype
    out.float().sum().backward()
    assert converted[0].weight.grad.dtype == torch.float32


def test_a_plain_rule_is_the_host():
    model = kinds()
    converted, _ = convert_copy(model, images(), rule=torchnorm.PLAIN)
    assert_same_step(converted, model, GATE["float64"])


def test_the_hosts_own_hooks_see_what_the_host_returns():
    seen = []
    model = nn.Sequential(conv(), norm(), nn.ReLU())
    model[0].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    torchnorm.convert(model, images())
    model(images())
    assert seen == [(3, 4, 6, 6)] * 2


def test_fused_inference_goes_on_as_it_was():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=D).eval()
    x = rows().reshape(3, 4, 8)
    with torch.no_grad():
        expected = layer(x)
        torchnorm.convert(layer, x)
        assert torch.equal(layer(x), expected)
