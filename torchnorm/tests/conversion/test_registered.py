"""`torchnorm.register`, subclasses, and layers of other libraries."""

import copy
import pickle
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests.models.torch import one_thread
from torchnorm.tests.conversion.nets import D


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


class Mine(nn.Linear):
    """A subclass that computes the same."""

    subclasses: ClassVar[list[type]] = []

    def __init_subclass__(cls, **kwargs):
        Mine.subclasses.append(cls)

    def reset_parameters(self):
        """Other values."""
        nn.init.orthogonal_(self.weight)

    def more(self):
        """A method of its own."""
        return self.in_features


class MyConvolution(nn.Conv2d):
    """Likewise."""


class Doubled(nn.Linear):
    """A subclass that computes something else, which is seen."""

    def forward(self, x):
        """Twice."""
        return super().forward(2 * x)


def network():
    """With subclasses."""
    torch.manual_seed(0)
    layers = MyConvolution(1, 2, 3, dtype=D), nn.ReLU(), nn.Flatten(), Mine(8, 4, dtype=D)
    return nn.Sequential(*layers, nn.Tanh(), Doubled(4, 2, dtype=D))


def images():
    """Some."""
    torch.manual_seed(1)
    return torch.randn(6, 1, 4, 4, dtype=D)


def recording(model, kind=torch.optim.SGD):
    """An optimizer in the coordinates."""
    return torchnorm.optim.in_neuron_coordinates(kind(model.parameters(), 1e-2), model)


def test_a_subclass_stays_one():
    model, x = network(), images()
    expected = model(x)
    report = torchnorm.convert(model, x)
    assert [(row.kind, row.gate) for row in report.rows] == [
        ("MyConvolution", "relu"),
        ("Mine", "tanh"),
        ("Doubled", None),
    ]
    assert not report.left
    assert torch.equal(model(x), expected)
    assert not Mine.subclasses
    optimizer = recording(model)
    model(x).sum().backward()
    optimizer.step()
    out = model(x)
    for change in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        other = change(model)
        assert torch.equal(other(x), out)
        assert type(other[3]) is type(model[3])
        assert isinstance(other[3], Mine)
        assert isinstance(other[3], torchnorm.Linear)
        assert other[3].more() == 8
        torchnorm.revert(other)
        assert [type(other[k]) for k in (0, 3, 5)] == [MyConvolution, Mine, Doubled]
    assert repr(model[3]).startswith("Mine(in_features=8, out_features=4, bias=True, gate='tanh'")


class Kernel(torch.autograd.Function):
    """A product that PyTorch does not show."""

    @staticmethod
    def forward(ctx, x, weight):
        """The product."""
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, g_z):
        """Its gradients."""
        x, weight = ctx.saved_tensors
        return g_z @ weight, g_z.T @ x


class Fast(nn.Module):
    """With names of its own."""

    def __init__(self, layer):
        super().__init__()
        self.kernel = nn.Parameter(layer.weight.detach().clone())
        self.shift = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x):
        """The layer."""
        return Kernel.apply(x, self.kernel) + self.shift


class Faster(Fast):
    """With the same forward."""


@pytest.fixture
def registered():
    """Registers, and takes it back."""
    done = []

    def add(kind, **options):
        torchnorm.register(kind, **options)
        done.append(kind)

    yield add
    for kind in done:
        torchnorm.unregister(kind)


def pair(kind=Fast):
    """A plain network, and the same with the class."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(3, 4, dtype=D), nn.BatchNorm1d(4, dtype=D), nn.ReLU(), nn.Linear(4, 2, dtype=D)
    )
    other = copy.deepcopy(plain)
    other[0], other[3] = kind(plain[0]), kind(plain[3])
    return plain, other


def product(layer, x, weight):
    """That of Fast."""
    del layer
    return x @ weight.T


def name(operation):
    """Of a test, in every process the same."""
    return getattr(operation, "__name__", operation)


@pytest.mark.parametrize("operation", ["linear", product], ids=name)
@pytest.mark.parametrize("kind", [Fast, Faster])
def test_a_registered_class_is_a_layer(registered, operation, kind):
    plain, model = pair(kind)
    x = torch.randn(8, 3, dtype=D) * torch.tensor([1, 5, 0.2]) + 3
    reasons = {row.reason for row in torchnorm.convert(copy.deepcopy(model), x).left}
    assert reasons == {
        "not used on example_input, or by what PyTorch does not show (a custom function)"
    }
    registered(Fast, weight="kernel", bias="shift", operation=operation)
    for each in (plain, model):
        report = torchnorm.convert(each, x)
        assert report["0"].reason == "deferred to 1"
        optimizer = recording(each, torch.optim.Adam)
        for _ in range(3):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(plain(x), model(x), rtol=1e-9, atol=1e-9)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    torchnorm.revert(model)
    assert type(model[0]) is kind
    assert vars(model[0]).keys() == vars(pair(kind)[1][0]).keys()


class Same(nn.Conv2d):
    """A convolution of its own, in a custom function's place."""

    def forward(self, x):
        """The convolution."""
        return Hidden.apply(x, self.weight, self.groups) + self.bias[:, None, None]


class Hidden(torch.autograd.Function):
    """A convolution that PyTorch does not show."""

    @staticmethod
    def forward(ctx, x, weight, groups):
        """The product."""
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return F.conv2d(x, weight, padding=1, groups=groups)

    @staticmethod
    def backward(ctx, g_z):
        """Its gradients."""
        x, weight = ctx.saved_tensors
        back = torch.ops.aten.convolution_backward.default
        window = [1, 1], [1, 1], [1, 1], False, [0, 0], ctx.groups, [True, True, False]
        return *back(g_z, x, weight, None, *window)[:2], None


def convolved(layer, x, weight):
    """That of Same."""
    return F.conv2d(x, weight, padding=1, groups=layer.groups)


@pytest.mark.parametrize("operation", ["conv", convolved], ids=name)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_registered_convolution(registered, operation, groups):
    registered(Same, operation=operation)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=groups, dtype=D), nn.ReLU())
    model = nn.Sequential(Same(4, 6, 3, padding=1, groups=groups, dtype=D), nn.ReLU())
    model.load_state_dict(plain.state_dict())
    x, outputs = torch.randn(3, 4, 5, 5, dtype=D) + 1, []
    for each in (plain, model):
        assert torchnorm.convert(each, x)["0"].gate == "relu"
        optimizer = recording(each)
        each(x).square().sum().backward()
        optimizer.step()
        outputs.append(each(x))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


def standardized(layer, x, weight):
    """The convolution of BiT: the weight is standardized first."""
    mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True)
    return F.conv2d(x, (weight - mean) / (variance + 1e-10).sqrt(), layer.bias, padding=1)


class StdConv(nn.Conv2d):
    """As in big_vision and BiT."""

    def forward(self, x):
        """The convolution."""
        return standardized(self, x, self.weight)


def test_a_standardized_weight_is_left_alone(registered):
    model, x = nn.Sequential(StdConv(2, 3, 3, padding=1), nn.ReLU()), torch.randn(2, 2, 5, 5)
    report = torchnorm.convert(model, x)
    assert report["0"].reason.startswith("its weight goes into mean, var")
    registered(StdConv, bias=None, operation=standardized)
    assert torchnorm.convert(model, x)["0"].converted
    with pytest.raises(ValueError, match="'standardized' for StdConv, which is not linear in the"):
        model(x)


#: What is wrong, and the text.
WRONG = {
    "another result": (lambda m, x, w: 3 * (x @ w.T), "not what its forward returns"),
    "no product": (lambda m, x, w: x @ (w + 0.05 * w**2).T, "not linear in"),
    "a constant": (lambda m, x, w: x @ w.T + 1e-2, "not linear in the weight"),
    "a factor": (lambda m, x, w: (x * 0.9) @ w.T, "is not multiplied with one entry of x, once"),
    "squared inputs": (lambda m, x, w: (x + 0.01 * x**2) @ w.T, "with one entry of x, once"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_such_operation_is_an_error(registered, name):
    operation, text = WRONG[name]
    registered(Fast, weight="kernel", bias="shift", operation=operation)
    model = nn.Sequential(Fast(nn.Linear(3, 4, dtype=D)))
    x = torch.randn(8, 3, dtype=D)
    torchnorm.convert(model, x)
    with pytest.raises(ValueError, match=text):
        model(x)


def test_wrong_arguments():
    for kind in (3, dict):
        with pytest.raises(TypeError, match="layer_class: got"):
            torchnorm.register(kind)
    for kind in (nn.Linear, nn.Conv2d, torchnorm.Linear):
        with pytest.raises(ValueError, match="register a subclass of it"):
            torchnorm.register(kind)
    with pytest.raises(TypeError, match="operation: got 'dense'"):
        torchnorm.register(Fast, operation="dense")
    with pytest.raises(ValueError, match="expected one that was registered"):
        torchnorm.unregister(Fast)


def test_pytorch_geometric():
    geometric = pytest.importorskip("torch_geometric.nn", reason="its layers are converted")
    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 2, 3, 3, 1], [1, 2, 3, 0, 1, 0]])

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = geometric.GCNConv(3, 8), geometric.SAGEConv(8, 2)

        def forward(self, x):
            return self.second(self.first(x, edges).relu(), edges)

    model, x = Graph(), torch.randn(4, 3)
    report = torchnorm.convert(model, x)
    assert [row.layer for row in report.converted] == [
        "first.lin",
        "second.lin_l",
        "second.lin_r",
    ]
    optimizer = recording(model)
    model(x).sum().backward()
    optimizer.step()
    assert {*optimizer.state_dict()["neuron_stats"]} == {row.layer for row in report.converted}


def test_low_rank_adapters():
    peft = pytest.importorskip("peft", reason="its adapters are converted")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], lora_dropout=0.0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model = peft.get_peft_model(model, config)
    x = torch.randn(8, 4)
    report = torchnorm.convert(model, x)
    assert {row.layer.rsplit(".", 2)[-2] for row in report.converted} == {"lora_A", "lora_B"}
    assert {row.reason for row in report.left} == {"frozen (requires_grad=False)"}
    optimizer = recording(model)
    model(x).sum().backward()
    optimizer.step()


class Merged(nn.Module):
    """A frozen weight and a product of two that learn."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3), requires_grad=False)
        self.up, self.down = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        """All in one weight."""
        return F.linear(x, self.weight + self.up @ self.down)


def test_adapters_that_are_merged_first_are_left_alone():
    report = torchnorm.convert(nn.Sequential(Merged()), torch.randn(5, 3))
    assert not report.converted
    assert "goes into matmul, which is no product that is linear in it" in report["0"].reason
