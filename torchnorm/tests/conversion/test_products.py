"""`torchnorm.convert`: what a module multiplies with by functions of PyTorch is a layer, too."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import torchnorm
from parity_tests.models.torch import one_thread
from torchnorm.tests.conversion.nets import D


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


class Written(nn.Module):
    """The layer's product, written out."""

    def __init__(self, layer, how, change=lambda weight: weight, shape=None):
        super().__init__()
        weight, bias = change(layer.weight.detach()), layer.bias.detach()
        self.matrix = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
        self.offset = nn.Parameter(bias.reshape(shape or bias.shape).clone())
        self.how = how

    def forward(self, x):
        """The product."""
        return self.how(x, self.matrix, self.offset)


def added_in_place(x, w, b):
    """The bias."""
    z = torch.matmul(x, w.t())
    z += b
    return z


def heads(weight):
    """[O, I] as [I, heads, dims]."""
    return weight.T.reshape(weight.shape[1], 2, -1)


WRITTEN = {
    "linear": (F.linear,),
    "transposed": (lambda x, w, b: x @ w.T + b,),
    "in place": (added_in_place,),
    "stored the other way": (lambda x, w, b: x @ w + b, torch.t),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), torch.t),
    "baddbmm": (lambda x, w, b: torch.baddbmm(b, x[None], w[None]).flatten(0, 1), torch.t),
    "weight first": (lambda x, w, b: (w @ x.T).T + b,),
    "bias first": (lambda x, w, b: (w @ x.T + b[:, None]).T,),
    "einsum": (lambda x, w, b: torch.einsum("...i,oi->...o", x, w) + b,),
    "einsum weight first": (lambda x, w, b: torch.einsum("io,ni->no", w, x) + b, torch.t),
    "heads": (lambda x, w, b: (torch.einsum("ni,ihd->nhd", x, w) + b).flatten(1), heads, (2, -1)),
    "cast": (lambda x, w, b: F.linear(x.double(), w.double(), b.double()).to(x.dtype),),
    "masked": (lambda x, w, b: F.linear(x, w * torch.ones_like(w), b),),
    "scaled": (lambda x, w, b: F.linear(2 * x, 0.5 * w, b),),
    "beside a constant": (lambda x, w, b: F.linear(x, torch.zeros_like(w) + w, b),),
    "convolution": (lambda x, w, b: F.conv1d(x[..., None], w[..., None], b)[..., 0],),
    "keywords": (lambda x, w, b: F.linear(input=x, weight=w, bias=b),),
}


def network():
    """Three layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8, dtype=D),
        nn.ReLU(),
        nn.Linear(8, 6, dtype=D),
        nn.Tanh(),
        nn.Linear(6, 1, dtype=D),
    )


def rows(count=16):
    """Of very different sizes."""
    torch.manual_seed(1)
    return torch.randn(count, 4, dtype=D) * torch.tensor([1, 10, 0.1, 3.0]) + 2


def trained(model, steps=3, x=None):
    """Report and outputs, after steps in the coordinates."""
    x = rows() if x is None else x
    report = torchnorm.convert(model, x)
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.Adam(model.parameters(), 1e-2), model
    )
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return report, model(x)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_product_is_the_layer_that_it_writes_out(name):
    how, *rest = WRITTEN[name]
    model, plain = network(), network()
    model[2], plain[2] = Written(model[2], how, *rest), Written(plain[2], how, *rest)
    expected = trained(network())[1]
    before = plain(rows())
    plain.zero_grad()
    before.square().mean().backward()
    report = torchnorm.convert(copy.deepcopy(model), rows())
    assert report["2"].converted
    found, out = trained(model)
    assert found["2"].kind == "Written"
    assert not found.unresolved
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    # Bit for bit.
    fresh = network()
    fresh[2] = copy.deepcopy(plain[2])
    fresh.zero_grad()
    torchnorm.convert(fresh, rows())
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.SGD(fresh.parameters(), 1e-2), fresh
    )
    del optimizer
    after = fresh(rows())
    assert torch.equal(after, before)
    after.square().mean().backward()
    for one, other in zip(fresh.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


class Several(nn.Module):
    """Two weights, one of them of another's module."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 6, dtype=D))
        self.second = nn.Parameter(torch.randn(6, 2, 3, dtype=D))
        self.other = nn.Linear(6, 2, dtype=D)
        self.table = nn.Parameter(torch.randn(3, 4, dtype=D))

    def forward(self, x):
        """Both."""
        y = torch.relu(x @ self.first)
        y = torch.einsum("ni,ihd->nhd", y, self.second).flatten(1)
        return F.linear(y, self.other.weight, self.other.bias).tanh() + self.table.exp().sum()


def several():
    """In a network."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5, dtype=D), nn.ReLU(), Several())


def test_each_weight_of_a_module_has_a_row():
    report = torchnorm.convert(several(), rows())
    assert [(row.layer, row.gate) for row in report.converted] == [
        ("0", "relu"),
        ("2.first", "relu"),
        ("2.second", None),
        ("2.other", "tanh"),
    ]
    assert report["2.table"].reason == (
        "its weight goes into exp, which is no product that is linear in it"
    )


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopy", "pickle"],
)
def test_copies_of_a_model_and_its_optimizer_go_on(change):
    model, x = several(), rows()
    torchnorm.convert(model, x)
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.Adam(model.parameters(), 1e-2), model
    )
    pairs = [(model, optimizer), change((model, optimizer))]
    for each, inner in pairs:
        assert isinstance(each[2], Several)
        for _ in range(2):
            inner.zero_grad()
            each(x).square().mean().backward()
            inner.step()
    assert torch.equal(pairs[0][0](x), pairs[1][0](x))
    assert [*pairs[0][1].state_dict()["neuron_stats"]] == ["0", "2.first", "2.second", "2.other"]
    for each, _ in pairs:
        torchnorm.revert(each)
        assert type(each[2]) is Several
        assert not any(name.startswith("_conv") for module in each for name in vars(module))
        assert {*vars(each[2])} == {*vars(Several())}


def test_a_compiled_forward_pass_records_the_same():
    x, outputs = rows(), []
    for compiled in (False, True):
        model = several()
        torchnorm.convert(model, x)
        optimizer = torchnorm.optim.in_neuron_coordinates(
            torch.optim.Adam(model.parameters(), 1e-2), model
        )
        run = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
        for _ in range(2):
            optimizer.zero_grad()
            run(x).square().mean().backward()
            optimizer.step()
        outputs.append(model(x))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


class Checkpointed(nn.Module):
    """A checkpoint in the module itself, or in its caller."""

    def __init__(self, within):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, dtype=D))
        self.within = within

    def forward(self, x):
        """The product."""
        if self.within:
            return torch.utils.checkpoint.checkpoint(self.product, x, use_reentrant=False)
        return self.product(x)

    def product(self, x):
        """The product."""
        return F.linear(x, self.weight).relu()


def test_checkpoints():
    torch.manual_seed(0)
    model = nn.Sequential(Checkpointed(within=True))
    reason = "it is multiplied with inside of a checkpoint that its module makes itself"
    assert torchnorm.convert(model, rows())["0"].reason == reason
    model = nn.Sequential(Checkpointed(within=False), nn.Linear(5, 1, dtype=D))
    torchnorm.convert(model, rows())
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.SGD(model.parameters(), 1e-3), model
    )
    for reentrant in (False, True):
        z = torch.utils.checkpoint.checkpoint(
            model[0], rows().requires_grad_(), use_reentrant=reentrant
        )
        model[1](z).sum().backward()
        counts = [layer["scalars"][0] for layer in gathered(optimizer).values()]
        assert counts == [16, 16]
        optimizer.step()
        optimizer.zero_grad()


def gathered(optimizer):
    """What the layers have gathered."""
    layers = optimizer._neuronwise.layers
    return {name: layer.stats.gathered().present() for name, layer in layers.items()}


def test_autocast():
    model, plain = (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Checkpointed(False)) for _ in "ab")
    for each in (model, plain):
        each[2].weight = nn.Parameter(torch.ones(3, 5))
    plain.load_state_dict(model.state_dict())
    x = rows().float()
    torchnorm.convert(model, x)
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.SGD(model.parameters(), 1e-3), model
    )
    outs = []
    for each in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            outs.append(each(x))
        outs[-1].float().sum().backward()
    assert outs[0].dtype == torch.bfloat16
    assert torch.equal(*outs)
    assert torch.equal(model[2].weight.grad, plain[2].weight.grad)
    assert gathered(optimizer)["2"]["scalars"][0] == 16


class Half(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        """Half of it."""
        return weight / 2


class Symmetric(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        """What each entry serves twice."""
        return weight.triu() + weight.triu(1).transpose(-1, -2)


#: name: (what is done to the layer, the factor between its weight and its parameter, or the reason)
COMPUTED = {
    "half": (lambda layer: parametrize.register_parametrization(layer, "weight", Half()), 0.5),
    "spectral_norm": (parametrizations.spectral_norm, None),
    "old spectral_norm": (nn.utils.spectral_norm, None),
    "pruned": (lambda layer: prune.random_unstructured(layer, "weight", 0.3), 1),
    "weight_norm": (parametrizations.weight_norm, "weight_norm"),
    "old weight_norm": (nn.utils.weight_norm, "weight_norm"),
    "symmetric": (
        lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
        "triu",
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_computed_weight_has_the_coordinates_of_its_parameter(name):
    """With z = (factor x) . parameter + b: the moments are those of factor x."""
    change, factor = COMPUTED[name]
    x = rows()

    def made():
        torch.manual_seed(0)
        layers = nn.Linear(4, 4, dtype=D), nn.ReLU(), nn.Linear(4, 1, dtype=D)
        change(layers[0])
        return nn.Sequential(*layers)

    model, plain = made(), made()
    row = torchnorm.convert(model, x)["0"]
    if isinstance(factor, str):
        assert (
            row.reason == f"its weight goes into {factor}, which is no product that is linear in it"
        )
        return
    assert row.gate == "relu"
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.SGD(model.parameters(), 1e-3), model
    )
    out = model(x)
    assert torch.equal(out, plain(x))
    out.square().mean().backward()
    plain(x)
    parameter = next(p for n, p in model[0].named_parameters() if "weight" in n)
    if factor is None:
        entry = model[0].weight[0, 0] / parameter[0, 0]
        factor = entry.item()
    statistics = gathered(optimizer)["0"]
    torch.testing.assert_close(
        statistics["layer_first"] / 16 + statistics["origin"], factor * x.mean(0, keepdim=True)
    )
    optimizer.step()


def test_moved_statistics_follow_the_module():
    model = several()
    torchnorm.convert(model, rows())
    torchnorm.optim.in_neuron_coordinates(torch.optim.SGD(model.parameters()), model)
    model.float()
    assert model[2]._products["first"].neuron_stats is None  # the optimizer is gone
    optimizer = torchnorm.optim.in_neuron_coordinates(torch.optim.SGD(model.parameters()), model)
    model.double()
    assert model[2]._products["first"].neuron_stats.read().center.dtype == D
    del optimizer


def test_a_weight_of_two_modules_is_left_alone():
    """As a layer's that is shared: else no optimizer takes the model."""
    model, x = network(), rows()
    for at in (2, 4):
        model[at] = Written(nn.Linear(8, 8, dtype=D), lambda x, w, b: x @ w.T + b)
    model[4].matrix = model[2].matrix
    adam = torch.optim.Adam(model.parameters())
    report = torchnorm.prepare(model, adam, x).report
    assert [row.reason for row in report.left] == [
        "its weight is shared with 4",
        "its weight is shared with 2",
    ]
    torchnorm.revert(model)
    assert torchnorm.convert(model, x, skip="2")["2"].reason == "skipped"
