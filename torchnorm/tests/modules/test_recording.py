"""A layer records a pass if its samples enter the gradient of its own weight, and no other pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import torchnorm
from torchnorm.optim import in_neuron_coordinates
from torchnorm.tests.optim.nets import error, same, values
from torchnorm.tests.versions import WHOLE_GRAPHS

D = torch.float64


class Products(nn.Module):
    """A parameter with which a module multiplies, with and without a bias beside it."""

    def __init__(self):
        super().__init__()
        self.first, self.bias = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8))
        self.last = nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        """[N, 5] -> [N, 3]."""
        return F.linear((x @ self.first + self.bias).relu(), self.last)


class Experts(nn.Module):
    """Three experts in one parameter, which take the tokens in turn."""

    def __init__(self):
        super().__init__()
        self.up, self.up_bias = nn.Parameter(torch.randn(3, 8, 5)), nn.Parameter(torch.randn(3, 8))
        self.down = nn.Parameter(torch.randn(3, 3, 8))

    def forward(self, x):
        """[N, 5] -> [N, 3]."""
        out = x.new_zeros(len(x), 3)
        for k in range(3):
            rows = torch.arange(k, len(x), 3)
            h = F.linear(x[rows], self.up[k], self.up_bias[k]).relu()
            out = out.index_add(0, rows, h @ self.down[k].T)
        return out


class Recurrent(nn.Module):
    """A layer of several weights, step by step."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 3, batch_first=True)

    def forward(self, x):
        """[N, 5] -> [N, 3]."""
        return self.lstm(torch.stack([x, x.flip(0)], 1))[0][:, -1]


class Images(nn.Sequential):
    """Convolutions; one is told its gate behind a normalization."""

    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, 5)),
            nn.Conv1d(1, 4, 3),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.ConvTranspose1d(4, 2, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 3),
        )


class Dense(nn.Sequential):
    """Dense layers."""

    def __init__(self):
        super().__init__(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 3, bias=False))


NETS = [Dense, Images, Products, Experts, Recurrent]


def make(net, kind=torch.optim.SGD):
    """(model, its optimizer)."""
    torch.manual_seed(0)
    model = net().to(D)
    torchnorm.convert(model, batch()[0], recurrent=True)
    return model, in_neuron_coordinates(kind(model.parameters(), 0.01), model)


def batch(seed=0, samples=24):
    generator = torch.Generator().manual_seed(seed)
    scale, mean = torch.tensor([1, 3, 0.2, 5, 1]), torch.tensor([2, -1, 0.5, 8, 0])
    x = torch.randn(samples, 5, generator=generator, dtype=D) * scale + mean
    return x, torch.randn(samples, 3, generator=generator, dtype=D)


def other():
    """A batch whose inputs are of another mean and scale, which may learn."""
    return (batch(7)[0] * 9 + 30).requires_grad_()


def copies(model, *, learn=False):
    return {name: p.detach().clone().requires_grad_(learn) for name, p in model.named_parameters()}


def nothing(model):
    """No other pass."""


def learning(model):
    """One that has a part in the gradient, though one of 0."""
    (model(other()) * 0).sum().backward()


def frozen(model):
    """A critic, through which a generator learns."""
    model.requires_grad_(False)
    model(other()).sum().backward()
    model.requires_grad_(True)


def detached(model):
    functional_call(model, copies(model), (other(),)).sum().backward()


def others(model):
    """Of a model that learns, too, but not by this optimizer."""
    functional_call(model, copies(model, learn=True), (other(),)).sum().backward()


def teacher(model):
    with torch.no_grad():
        functional_call(model, copies(model), (other(),))


def teacher_that_learns(model):
    with torch.no_grad():
        functional_call(model, copies(model, learn=True), (other(),))


def looked_at(model):
    with torch.no_grad():
        model(other())


def by_the_input(model):
    x = other()
    torch.autograd.grad(model(x).sum(), x)


def per_sample(model):
    def loss(parameters, x):
        return functional_call(model, parameters, (x[None],)).square().sum()

    vmap(grad(loss), (None, 0))(copies(model), other().detach())


def forward_mode(model):
    x = other().detach()

    def run(parameters):
        return functional_call(model, parameters, (x,))

    jvp(run, (copies(model),), (copies(model),))


PASSES = [
    frozen,
    detached,
    others,
    teacher,
    teacher_that_learns,
    looked_at,
    by_the_input,
    per_sample,
    forward_mode,
]


def train(net, extra, *, run=lambda model, x: model(x)):
    """The parameters after some steps of two micro-batches, each with another pass at its side."""
    model, optimizer = make(net)
    for step in range(3):
        x, y = batch(step)
        optimizer.zero_grad()
        for rows in (slice(0, 10), slice(10, 24)):
            extra(model)
            (run(model, x[rows]) - y[rows]).square().sum().div(24).backward()
            extra(model)
        optimizer.step()
    return values(model)


@pytest.mark.parametrize("extra", PASSES)
@pytest.mark.parametrize("net", NETS)
def test_passes_that_have_no_part_in_the_gradient(net, extra):
    if net in (Recurrent, Experts) and extra in (per_sample, forward_mode):
        pytest.skip("torch.func does not go through it")
    assert same(train(net, extra), train(net, nothing))


@pytest.mark.parametrize("net", NETS)
def test_a_pass_that_has_a_part_is_seen(net):
    assert error(train(net, learning), train(net, nothing)) > 1e-3


@pytest.mark.parametrize("net", NETS)
def test_such_a_pass_in_the_same_graph(net):
    def run(model, x):
        with_copies = functional_call(model, copies(model), (other(),))
        return model(x) + 0 * with_copies.sum()

    assert same(train(net, nothing, run=run), train(net, nothing))


@pytest.mark.parametrize("extra", [frozen, teacher, by_the_input])
@pytest.mark.parametrize("reentrant", [False, True])
def test_beside_checkpoints(extra, reentrant):
    def run(model, x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    assert same(train(Dense, extra, run=run), train(Dense, nothing))


@pytest.mark.parametrize("net", NETS)
def test_frozen_layers_are_pytorchs(net):
    """Nothing is tracked through them, so that what PyTorch allows there is allowed."""
    model, _ = make(net)
    model.requires_grad_(False)
    x = batch()[0]
    assert not model(x).requires_grad
    with torch.inference_mode():
        inferred = x * 1
    if net is not Recurrent:  # PyTorch's kernel keeps them
        out = model(inferred.clone()) + torch.ones((), requires_grad=True, dtype=D)
        out.sum().backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_where_only_the_bias_learns(kind):
    """The optimizer steps such a layer as it is, and nothing is recorded for it."""
    model, optimizer = make(Dense, kind)
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    plain = Dense().to(D)
    plain.load_state_dict(model.state_dict())
    x, y = batch()
    for net, at in ((model, optimizer), (plain, kind([plain[0].bias], 0.01))):
        for _ in range(3):
            at.zero_grad()
            (net(x) - y).square().mean().backward()
            if net is model:
                assert not model[0].neuron_stats.has_gathered
            at.step()
    assert same(values(model), values(plain))


def test_layers_that_learn_again():
    """What was gathered for a gradient that was dropped in between is not of the next."""
    model, optimizer = make(Dense)
    x, y = batch()
    learning(model)
    model.zero_grad()
    frozen(model)
    (model(x) - y).square().sum().backward()
    assert model[0].neuron_stats.gathered().samples.item() == len(x)
    optimizer.step()


@pytest.mark.parametrize("tool", ["bnp", "quasi_diagonal", "in_neuron_coordinates"])
def test_gradients_that_a_hook_puts_elsewhere(tool):
    """As `p.main_grad`, put back before the step: its gradient is of both micro-batches."""

    def trained(*, elsewhere):
        torch.manual_seed(0)
        model = Dense().to(D)
        torchnorm.convert(model, batch()[0])
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)
        getattr(torchnorm.optim, tool)(optimizer, model)
        if elsewhere:
            for p in model.parameters():
                p.main_grad = torch.zeros_like(p)
                p.register_post_accumulate_grad_hook(put_elsewhere)
        for step in range(3):
            x, y = batch(step)
            optimizer.zero_grad()
            for rows in (slice(0, 10), slice(10, 24)):
                (model(x[rows]) - y[rows]).square().sum().backward()
            if elsewhere:
                for p in model.parameters():
                    p.grad, p.main_grad = p.main_grad, torch.zeros_like(p)
            optimizer.step()
        return values(model)

    def put_elsewhere(p):
        p.main_grad += p.grad
        p.grad = None

    assert error(trained(elsewhere=True), trained(elsewhere=False)) < 1e-12


@WHOLE_GRAPHS
def test_compiled_layers_that_are_frozen_and_learn_again():
    model, optimizer = make(Dense)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x, _ = batch()
    for learn in (True, False, True):
        optimizer.zero_grad()
        model.requires_grad_(learn)
        out = compiled(x)
        assert out.requires_grad == learn
        if learn:
            out.sum().backward()
        assert model[0].neuron_stats.has_gathered == learn
