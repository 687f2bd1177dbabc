"""Padding: a batch with a mask records what the batch without these rows does."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.tolerances import GATE, VISIBLE, slice_error
from torchnorm import Rule
from torchnorm.functional import neuronwise_conv2d, neuronwise_linear
from torchnorm.operations.linear import LinearOperation
from torchnorm.statistics import merging, tracked
from torchnorm.tests.versions import WHOLE_GRAPHS

RULES = [
    Rule(),
    Rule(weighting="gate_squared", step_size="standardized"),
    Rule(weighting="signed", scale="layer"),
    Rule(weighting="uniform"),
    Rule(weighting="error", decay=0.9),
    Rule(scale="none"),
    Rule(statistics_rows=4),
]
LOCK = threading.Lock()
KEEP = np.array([1, 0, 1, 0, 1, 1, 1, 1, 1, 1], bool)


def product(x, weight, bias, **settings):
    return neuronwise_linear(x, weight, bias, gate="gelu", **settings)


def images(x, weight, bias, **settings):
    return neuronwise_conv2d(x, weight, bias, 2, 1, 1, 2, gate="gelu", **settings)


#: function, shape of x, of the weight, groups.
LAYERS = {
    "dense": (product, (10, 4), (3, 4), 1),
    "images": (images, (10, 4, 5, 6), (6, 2, 3, 3), 2),
}


def make(layer):
    """(f, x, (weight, bias), g_z); what does not count is NaN."""
    apply, x, weight, _ = LAYERS[layer]
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.normal(size=shape) for shape in (x, weight, weight[:1]))
    x = 2 * x + 3
    x[~KEEP] = np.nan
    x, weight, bias = (torch.tensor(a) for a in (x, weight, bias))
    g_z = torch.tensor(rng.normal(size=apply(x, weight, bias).shape))
    g_z[~KEEP] = 0
    return apply, x, (weight, bias), g_z


def record(layer, x, params, g_z, rule, **settings):
    """The statistics of two batches: the second about the mean that the first has left."""
    apply, groups = LAYERS[layer][0], LAYERS[layer][3]
    operation = LinearOperation(groups)
    stats = tracked.empty(operation, params[0], rule, gated=True, centered=True)
    found = []
    for shift in (0, 0.25):
        stats = stats.map(lambda value: value.detach().double().requires_grad_())
        z = apply(x + shift, *params, rule=rule, statistics=stats, **settings)
        torch.where(g_z == 0, 0, z * g_z).sum().backward()
        batch = stats.map(lambda value: value.grad)
        stats = merging.merge(stats.map(torch.Tensor.detach), batch, remembers=rule.remembers)
        found.append(stats)
    return found


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a.scalars, b.scalars, rtol=1e-12)
        a, b = merging.moments(a), merging.moments(b)
        assert slice_error(a.mean.expand(b.mean.shape), b.mean) <= GATE["float64"]
        assert slice_error(a.sigma, b.sigma) <= GATE["float64"]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_does_not_count_is_not_there(layer, rule):
    _, x, params, g_z = make(layer)
    found = record(layer, x, params, g_z, rule, neuron_mask=KEEP)
    assert_same(found, record(layer, x[KEEP], params, g_z[KEEP], rule))


def test_a_weight_of_two_is_a_row_twice():
    _, x, params, g_z = make("dense")
    weights = np.where(KEEP, np.arange(10) % 3 + 1, 0)
    found = record("dense", x, params, g_z, RULES[3], neuron_mask=weights)
    again = [a.repeat_interleave(torch.tensor(weights), 0) for a in (x, g_z)]
    assert_same(found, record("dense", again[0], params, again[1], RULES[3]))
    with pytest.raises(AssertionError):
        assert_same(found, record("dense", x[KEEP], params, g_z[KEEP], RULES[3]))


@pytest.mark.parametrize("layer", LAYERS)
def test_without_state(layer):
    """The gradient is the sum that it was, in the coordinates of what counts."""
    apply, x, params, g_z = make(layer)
    x = x.nan_to_num(7.0)  # the gradient itself is PyTorch's, and 0 NaN is NaN

    def gradient(x, g_z, **settings):
        leaves = [p.clone().requires_grad_() for p in params]
        return torch.autograd.grad((apply(x, *leaves, **settings) * g_z).sum(), leaves)[0]

    found, expected = gradient(x, g_z, neuron_mask=KEEP), gradient(x[KEEP], g_z[KEEP])
    assert slice_error(found, expected) <= GATE["float64"]
    assert slice_error(gradient(x, g_z), expected) > VISIBLE


def test_without_state_a_single_sample_is_an_error():
    apply, x, (weight, bias), _ = make("dense")
    weight.requires_grad_()
    bias.requires_grad_()
    z = apply(x, weight, bias, neuron_mask=np.arange(10) == 2)
    with pytest.raises(ValueError, match="statistics: got 1 sample, expected at least 2"):
        z.sum().backward()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_make_no_step(count):
    _, x, params, g_z = make("dense")
    mask = torch.arange(10) < count
    g_z = torch.where(mask[:, None], g_z, 0)
    merged, _ = record("dense", x, params, g_z, Rule(), neuron_mask=mask)
    assert not merging.usable(merged)
    assert all(value.isfinite().all() for value in merged.present().values())


class Net(nn.Module):
    """Per token, pooled, and on the two axes as one."""

    def __init__(self) -> None:
        super().__init__()
        self.token = torchnorm.Linear(3, 6, gate="silu")
        self.flat = torchnorm.Linear(6, 2, gate=None)
        self.pooled = torchnorm.Linear(6, 1, gate=None)

    def forward(self, x):
        """[B, T, 3] -> [B, 1] and [B T, 2]."""
        x = nn.functional.silu(self.token(x))
        return self.pooled(x[:, 0]), self.flat(x.reshape(-1, 6))


def tokens():
    lengths = torch.tensor([5, 3, 0, 1])
    return torch.randn(4, 5, 3), torch.arange(5) < lengths[:, None]


def counts_of(net):
    return {
        name: layer.neuron_stats.gathered().samples.item() for name, layer in net.named_children()
    }


def wrapped(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.optimizer = torchnorm.optim.in_neuron_coordinates(optimizer, net)  # whom it records for
    return net


@pytest.mark.parametrize("compiled", [False, True])
def test_the_mask_of_a_model(compiled):
    (x, mask), net = tokens(), wrapped(Net())
    run = torch.compile(net, backend="eager", fullgraph=True) if compiled else net
    for each in (mask, mask.roll(1, 0)):
        with torchnorm.neuron_mask(each):
            out = run(x)
        net.zero_grad()
        for layer in net.children():
            layer.neuron_stats.forget()
        sum(o.sum() for o in out).backward()
        assert counts_of(net) == {"token": 9.0, "flat": 9.0, "pooled": 3.0}
    assert torchnorm.masks.current_mask() is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside(reentrant):
    (x, mask), net = tokens(), wrapped(Net())
    x.requires_grad_()
    with torchnorm.neuron_mask(mask):
        out = checkpoint(net, x, use_reentrant=reentrant)
        sum(o.sum() for o in out).backward()
    assert counts_of(net) == {"token": 9.0, "flat": 9.0, "pooled": 3.0}


def test_under_vmap_the_mask_is_mapped_too():
    (x, mask), net = tokens(), wrapped(Net())
    layer = net.token

    def one(x, mask):
        with torchnorm.neuron_mask(mask):
            return layer(x)

    torch.func.vmap(one)(x, mask).sum().backward()
    assert layer.neuron_stats.gathered().samples.item() == 9.0


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=WHOLE_GRAPHS)])
def test_the_mask_of_another_thread_does_not_count(compiled):
    (x, mask), nets = tokens(), [wrapped(Net()) for _ in range(3)]
    runs = [torch.compile(n, backend="eager", fullgraph=True) if compiled else n for n in nets]
    masks, turn = (mask, mask.roll(1, 0), None), threading.Barrier(3, timeout=60)

    def train(run, mask):
        with contextlib.nullcontext() if mask is None else torchnorm.neuron_mask(mask):
            turn.wait()  # until all are inside
            with LOCK:  # (torch.compile traces one at a time)
                sum(o.sum() for o in run(x)).backward()
            turn.wait()

    pairs = zip(runs, masks, strict=True)
    threads = [threading.Thread(target=train, args=each) for each in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    masked = {"token": 9.0, "flat": 9.0, "pooled": 3.0}
    assert [counts_of(net) for net in nets] == [
        masked,
        masked,
        {"token": 20.0, "flat": 20.0, "pooled": 4.0},
    ]
    assert torchnorm.masks.current_mask() is None


def test_a_thread_of_autograd_has_the_masks_of_the_one_that_called_backward(monkeypatch):
    """Which PyTorch gives it under a name: on a CPU there is no such thread, so it is played."""
    _, mask = tokens()
    with torchnorm.neuron_mask(mask):
        given = torch._C._get_obj_in_tls(torchnorm.masks._NAME)
        found = []

        def look():
            found.append(torchnorm.masks.current_mask())
            with torchnorm.neuron_mask(None):
                found.append(torchnorm.masks.current_mask())
            found.append(torchnorm.masks.current_mask())

        monkeypatch.setattr(torch._C, "_is_key_in_tls", lambda name: True)
        monkeypatch.setattr(torch._C, "_get_obj_in_tls", lambda name: given)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert torch.equal(found[0], mask)
    assert found[2] is found[0]
    assert found[1] is None
    assert not given


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose thread autograd uses")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside_on_a_gpu(reentrant):
    (x, mask), net = tokens(), wrapped(Net().cuda())
    x = x.cuda().requires_grad_()
    with torchnorm.neuron_mask(mask):
        out = checkpoint(net, x, use_reentrant=reentrant)
        sum(o.sum() for o in out).backward()
    assert counts_of(net) == {"token": 9.0, "flat": 9.0, "pooled": 3.0}


def test_masks_that_do_not_fit():
    x, mask = tokens()
    weight = torch.ones(2, 3)
    weight.requires_grad_()
    with pytest.raises(ValueError, match=r"neuron_mask: got shape \(5, 4\), expected the axes of"):
        neuronwise_linear(x, weight, gate=None, neuron_mask=mask.T)
    with pytest.raises(TypeError, match="neuron_mask: got dtype complex64, expected bool or real"):
        neuronwise_linear(x, weight, gate=None, neuron_mask=mask.to(torch.complex64))
    with torchnorm.neuron_mask(mask), torchnorm.neuron_mask(None):
        neuronwise_linear(x[:3], weight, gate=None)
