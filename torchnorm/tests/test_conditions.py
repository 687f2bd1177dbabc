"""The conditions of real training: autocast, scaling, checkpoints, compile, memory formats."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.tolerances import (
    GATE,
    LOW_PRECISION_FACTOR,
    ROUNDING,
    TEXTBOOK,
    VISIBLE,
    slice_error,
)
from torchnorm import Rule
from torchnorm.functional import neuronwise_conv2d, neuronwise_linear
from torchnorm.tests.versions import WHOLE_GRAPHS

KINDS = ["dense", "conv"]
PRECONDITIONED = Rule(gradient="preconditioned")


def convnet(gate="relu", rule=PRECONDITIONED, dtype=torch.float64, inplace=False):
    """A convolution and a dense layer, with bias."""
    torch.manual_seed(0)
    activation = {"relu": nn.ReLU(inplace), "gelu": nn.GELU()}[gate]
    kwargs = {"gate": gate, "rule": rule, "dtype": dtype}
    return nn.Sequential(
        torchnorm.Conv2d(3, 8, 3, stride=2, padding=1, **kwargs),
        activation,
        nn.Flatten(),
        torchnorm.Linear(72, 4, **kwargs),
        activation,
    )


def mlp(gate="relu", rule=PRECONDITIONED, dtype=torch.float64):
    """Two dense layers on the same images."""
    torch.manual_seed(0)
    activation = {"relu": nn.ReLU(), "gelu": nn.GELU()}[gate]
    kwargs = {"gate": gate, "rule": rule, "dtype": dtype}
    return nn.Sequential(
        nn.Flatten(),
        torchnorm.Linear(108, 8, **kwargs),
        activation,
        torchnorm.Linear(8, 4, **kwargs),
        activation,
    )


def batch(rows=24, dtype=torch.float64):
    """Images of unlike channels, and a gradient at the output."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3, 6, 6)) * [[[1]], [[4]], [[0.1]]] + [[[0]], [[3]], [[1]]]
    return torch.tensor(x, dtype=dtype), torch.tensor(rng.normal(size=(rows, 4)), dtype=dtype)


def gradients(model, x, g_z):
    """At x and all parameters."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    model(x).backward(g_z)
    return [x.grad, *(p.grad.clone() for p in model.parameters())]


def error(actual, expected):
    """The worst over all tensors, per neuron; a bias vector is one slice."""
    pairs = zip(actual, expected, strict=True)
    return max(slice_error(a, e, axes=(0,) if e.ndim > 1 else ()) for a, e in pairs)


# Low precision and scaled losses.


def textbook(x, weight, bias, delta):
    """(g_W, g_b) of a dense ReLU layer as one would write it down, in the dtype of its tensors."""
    s = (x @ weight.T + bias > 0).to(x.dtype)
    rule = Rule()
    mass = s.sum(0)
    trust = (mass / (mass + rule.shrinkage))[:, None]
    centered = x - x.mean(0)
    own = s.T @ centered / mass[:, None]
    mean = x.mean(0) + trust * own
    deviation = centered[:, None, :] - own
    spread = (deviation * deviation * s[:, :, None]).sum(0) / mass[:, None]
    variance = trust * spread + (1 - trust) * (centered * centered).mean(0)
    variance = variance + trust * (1 - trust) * own * own
    square = variance + rule.damping * variance.mean(1, keepdim=True) + rule.epsilon
    size = square.mean(1, keepdim=True)  # all inputs vary
    g_weight = ((x[:, None, :] - mean) * delta[:, :, None]).sum(0) * (size / square)
    return g_weight, delta.sum(0) - (mean * g_weight).sum(1)


def coarse(kind):
    """Tensors on a grid so coarse that z is exact in bfloat16, and no gate depends on rounding."""
    rng = np.random.default_rng(2)
    space, window = ((), ()) if kind == "dense" else ((6, 6), (3, 3))
    grid = lambda n, *shape: torch.tensor(rng.integers(-n, n + 1, shape) / 2)  # noqa: E731
    x = grid(4, 32, 3, *space)
    weight, bias = grid(2, 4, 3, *window), grid(1, 4) + 0.25
    delta = torch.tensor(rng.normal(size=(32, 4, *space))).to(torch.bfloat16)
    return x, weight, bias, delta


def module_of(kind, weight, bias, dtype):
    """A layer with these parameters."""
    kwargs = {"gate": "relu", "rule": PRECONDITIONED, "dtype": dtype}
    layer = torchnorm.Linear(3, 4, **kwargs)
    if kind == "conv":
        layer = torchnorm.Conv2d(3, 4, 3, padding=1, **kwargs)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def as_matrix(kind, x, weight, delta):
    """(x, weight, delta) of the dense layer that a convolution is, for the textbook."""
    if kind == "dense":
        return x, weight, delta
    patches = nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 27)
    return patches, weight.reshape(4, 27), delta.flatten(2).transpose(1, 2).reshape(-1, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["module", "autocast"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_low_precision(kind, mode, dtype):
    """A module in low precision, or one in float32 under autocast; float16 on the CPU too."""
    x, weight, bias, delta = coarse(kind)
    low = getattr(torch, dtype)
    autocast = mode == "autocast"
    layer = module_of(kind, weight, bias, torch.float32 if autocast else low)
    given = (x.float() if autocast else x.to(low)).requires_grad_()
    with torch.autocast("cpu", dtype=low, enabled=autocast):
        z = layer(given)
    z.backward(delta.to(low))
    assert z.dtype == low
    assert given.grad.dtype == given.dtype
    assert (layer.weight.grad.dtype, layer.bias.grad.dtype) == (layer.weight.dtype,) * 2

    exact = module_of(kind, weight, bias, torch.float64)
    exact(x).backward(delta.double())
    rows, matrix, tall = as_matrix(kind, x.to(low), weight.to(low), delta.to(low))
    naive = textbook(rows, matrix, bias.to(low), tall)
    for mine, theirs, right in zip(layer.parameters(), naive, exact.parameters(), strict=True):
        flat = (4, -1) if right.ndim > 1 else (4,)
        axes = (0,) if right.ndim > 1 else ()
        right = right.grad.reshape(flat)
        yardstick = slice_error(theirs.float(), right, axes=axes)
        assert yardstick < TEXTBOOK, "a broken yardstick"
        bound = LOW_PRECISION_FACTOR * yardstick + ROUNDING[dtype]
        assert slice_error(mine.grad.float().reshape(flat), right, axes=axes) <= bound


@pytest.mark.parametrize("weighting", ["gate", "error"])
def test_scaled_gradients_are_the_scaled_rule(weighting):
    """The weight of a sample does not see the scale of the loss: GradScaler can unscale."""
    model = convnet("gelu", Rule(gradient="preconditioned", weighting=weighting))
    x, g_z = batch()
    expected = gradients(model, x, g_z)
    scaled = gradients(model, x, 2.0**16 * g_z)
    assert error([g / 2.0**16 for g in scaled], expected) <= GATE["float64"]


@pytest.mark.parametrize("dtype", ROUNDING)
def test_grad_scaler_steps_and_skips(dtype):
    x, g_z = batch(dtype=torch.float32)
    model = convnet(dtype=torch.float32)
    plain = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(factor):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=getattr(torch, dtype)):
            z = model(x)
        scaler.scale((z.float() * g_z * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    with torch.autocast("cpu", dtype=getattr(torch, dtype)):
        z = plain(x)
    (z.float() * g_z).sum().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        # A power of two: scaling rounds nothing, unless the scaled gradient leaves the range.
        moved, right = (q - p).detach(), 0.1 * q.grad
        bound = LOW_PRECISION_FACTOR * ROUNDING[dtype]
        assert slice_error(moved, right, axes=(0,) if p.ndim > 1 else ()) <= bound
    before, scale = [p.clone() for p in model.parameters()], scaler.get_scale()
    step(float("inf"))
    assert all(map(torch.equal, before, model.parameters()))
    assert scaler.get_scale() < scale


# Gradient accumulation.


def test_accumulation_adds_what_the_micro_batches_say():
    """Documented: not the whole batch's. Across processes a process_group is the exact way."""
    model = convnet()
    x, g_z = batch()
    parts = [gradients(model, *part)[1:] for part in zip(x.split(6), g_z.split(6), strict=True)]
    model.zero_grad()
    for part in zip(x.split(6), g_z.split(6), strict=True):
        model(part[0]).backward(part[1])
    got = [p.grad for p in model.parameters()]
    assert error(got, [sum(p) for p in zip(*parts, strict=True)]) <= GATE["float64"]
    assert error(got, gradients(model, x, g_z)[1:]) > VISIBLE


# Recomputation and compilation.


@pytest.mark.parametrize("gate", ["relu", "gelu"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(gate, use_reentrant):
    model = convnet(gate)
    x, g_z = batch()
    expected = gradients(model, x, g_z)

    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return checkpoint(self.model, x, use_reentrant=use_reentrant)

    assert error(gradients(Recomputed(), x, g_z), expected) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "gate", "backend"),
    [
        (convnet, "relu", "aot_eager"),
        (convnet, "gelu", "aot_eager"),
        (mlp, "relu", "aot_eager"),
        (mlp, "gelu", "aot_eager"),
        pytest.param(convnet, "relu", "inductor", marks=pytest.mark.slow),
        (mlp, "gelu", "inductor"),
    ],
)
@WHOLE_GRAPHS
def test_compile(make, gate, backend):
    torch.compiler.reset()
    model = make(gate)
    x, g_z = batch()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    got = [g.clone() for g in gradients(compiled, x, g_z)]
    assert error(got, gradients(model, x, g_z)) <= GATE["float64"]


# Memory.


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("weight_too", [False, True])
def test_channels_last(dims, weight_too):
    """The memory formats of z, g_x and g_W are PyTorch's; the numbers do not depend on them."""
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    torch.manual_seed(0)
    kwargs = {"padding": 1, "dtype": torch.float64}
    reference = getattr(nn, f"Conv{dims}d")(4, 8, 3, **kwargs)
    rule = PRECONDITIONED
    ours = getattr(torchnorm, f"Conv{dims}d")(4, 8, 3, gate="relu", rule=rule, **kwargs)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(3, 4, *[6] * dims, dtype=torch.float64) * 3 + 1
    g_z = torch.randn(3, 8, *[6] * dims, dtype=torch.float64)
    expected = gradients(ours, x, g_z)
    strides, got = [], []
    for layer in (reference, ours):
        if weight_too:
            layer = layer.to(memory_format=last)
        turned = x.to(memory_format=last).requires_grad_()
        layer.zero_grad()
        z = layer(turned)
        z.backward(g_z)
        got = [turned.grad, *(p.grad for p in layer.parameters())]
        strides.append([a.stride() for a in (z, *got)])
    assert strides[1] == strides[0]
    assert error(got, expected) <= GATE["float64"]


def leaves(kind):
    """(function, x, weight, bias, g_z)."""
    rng = np.random.default_rng(3)
    space, window = ((), ()) if kind == "dense" else ((6, 6), (3, 3))
    shapes = ((16, 3, *space), (4, 3, *window), (4,), (16, 4, *space))
    x, weight, bias, g_z = (torch.tensor(rng.normal(size=shape)) for shape in shapes)
    run = neuronwise_linear
    if kind == "conv":
        run = lambda *a, **k: neuronwise_conv2d(*a, padding=1, **k)  # noqa: E731
    return run, 3 * x + 1, weight, bias, g_z


def leaf_gradients(run, x, weight, bias, g_z, **kwargs):
    """At x, weight and bias."""
    own = [t.detach().requires_grad_() for t in (x, weight, bias)]
    run(*own, **({"gate": "gelu"} | kwargs)).backward(g_z)
    return [t.grad for t in own]


@pytest.mark.parametrize("kind", KINDS)
def test_views_that_are_not_contiguous(kind):
    """Transposed, strided and expanded tensors, gradients included."""
    run, x, weight, bias, g_z = leaves(kind)
    expected = leaf_gradients(run, x, weight, bias, g_z)

    def turned(tensor):
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    def gappy(tensor):
        return torch.stack([tensor, tensor], -1)[..., 0]

    for view in (turned, gappy):
        strange = [view(t) for t in (x, weight)]
        assert not any(t.is_contiguous() for t in strange)
        got = leaf_gradients(run, *strange, gappy(bias), view(g_z))
        assert error(got, expected) <= GATE["float64"]

    if kind == "conv":  # one image, as often as it takes
        wide, tall = x[:1].expand_as(x), g_z
    else:  # a batch twice
        wide, tall = x[None].expand(2, *x.shape), torch.stack([g_z, -2 * g_z])
    got = leaf_gradients(run, wide, weight, bias, tall)
    assert error(got, leaf_gradients(run, wide.clone(), weight, bias, tall)) <= GATE["float64"]
    flat = g_z[:1].expand_as(g_z)  # as the backward pass of a sum makes it
    got = leaf_gradients(run, x, weight, bias, flat)
    assert error(got, leaf_gradients(run, x, weight, bias, flat.clone())) <= GATE["float64"]


@pytest.mark.parametrize("gate", [nn.ReLU(inplace=True), nn.SiLU(inplace=True)])
def test_activations_in_place(gate):
    run, x, weight, bias, g_z = leaves("conv")
    results = []
    for keep in (False, True):
        own = [t.detach().requires_grad_() for t in (x, weight, bias)]
        z = run(*own, gate=gate)
        gate(z.clone() if keep else z).backward(g_z)
        results.append([t.grad for t in own])
    assert error(*results) == 0
    inplace, outside = (gradients(convnet(inplace=flag), *batch()) for flag in (True, False))
    assert error(inplace, outside) == 0


# torch.func.


def test_per_example_gradients_of_a_convolutional_net():
    """Each example has the statistics of its own positions; a dense row alone has none."""
    torch.manual_seed(0)
    kwargs = {"gate": "gelu", "rule": PRECONDITIONED, "dtype": torch.float64}
    model = nn.Sequential(
        torchnorm.Conv2d(3, 4, 3, padding=1, **kwargs),
        nn.GELU(),
        torchnorm.Conv2d(4, 2, 1, **kwargs),
    )
    x, _ = batch(6)
    g_z = torch.randn(6, 2, 6, 6, dtype=torch.float64)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params, x, g_z):
        z = torch.func.functional_call(model, params, (x[None],))
        return (z * g_z).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, g_z)
    for k in range(len(x)):
        one = gradients(model, x[k : k + 1], g_z[k : k + 1])[1:]
        assert error([g[k] for g in each.values()], one) <= GATE["float64"]
    whole = gradients(model, x, g_z)[1:]
    assert error([g.sum(0) for g in each.values()], whole) > VISIBLE

    dense = convnet()
    with pytest.raises(ValueError, match="got 1 sample, expected at least 2"):
        torch.func.vmap(
            torch.func.grad(lambda p, x: torch.func.functional_call(dense, p, (x[None],)).sum()),
            (None, 0),
        )({name: p.detach() for name, p in dense.named_parameters()}, x)
