"""The cost in products, read off the compiled program: at most two more kernel gradients."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jaxnorm
import torchnorm
from jaxnorm import BNP, PLAIN, Rule, neuronwise_conv, neuronwise_dense

N, I, O = 64, 96, 128  # noqa: E741
FULL = 2 * N * I * O

#: Full-size products of a whole step (forward, input gradient, kernel gradient: 3) by rule.
PRODUCTS = [
    (PLAIN, 3),
    (BNP, 3),
    (Rule(scale="none"), 4),
    (Rule(scale="layer"), 4),
    (Rule(), 5),
    (Rule(weighting="error"), 5),
]

#: A convolution: images, their side, channels, neurons, window; and its operations in one product.
IMAGES, SIDE, CHANNELS, NEURONS, WINDOW = 8, 16, 24, 32, 3
CONVOLUTION = 2 * IMAGES * SIDE**2 * WINDOW**2 * CHANNELS * NEURONS
#: The largest array there should be: x, z, or either in a layout of its own.
LARGEST = IMAGES * SIDE**2 * max(CHANNELS, NEURONS)


def compiled(rule):
    """The optimized program of one step."""

    def loss(kernel, bias, x):
        return jnp.sum(jax.nn.relu(neuronwise_dense(x, kernel, bias, gate="relu", rule=rule)) ** 2)

    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((I, O), (O,), (N, I))]
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()


@functools.cache
def compiled_convolution(rule, **geometry):
    """The optimized program of one step of a convolution."""

    def loss(kernel, bias, x):
        z = neuronwise_conv(x, kernel, bias, gate="relu", rule=rule, **geometry)
        return jnp.sum(jax.nn.relu(z) ** 2)

    kernel = (WINDOW, WINDOW, CHANNELS // geometry.get("feature_group_count", 1), NEURONS)
    shapes = (kernel, (NEURONS,), (IMAGES, SIDE, SIDE, CHANNELS))
    arrays = [jax.ShapeDtypeStruct(s, "float32") for s in shapes]
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()


def products(text):
    """How many dots of the program work on the layer's full size."""
    sizes = {(N, O), (I, O), (N, I)}
    found = re.findall(r"= f\d+\[(\d+),(\d+)\]\S* (?:dot|custom-call)\(", text)
    return sum((int(a), int(b)) in sizes or (int(b), int(a)) in sizes for a, b in found)


def shapes(text, operation=""):
    """The shapes of all results of an operation in the program, or of all operations."""
    found = re.findall(rf"= \w+\[([\d,]*)\]\S* {operation or '[a-z]'}", text)
    return [tuple(map(int, shape.split(","))) if shape else () for shape in found]


@pytest.mark.parametrize(("rule", "expected"), PRODUCTS, ids=str)
def test_products_of_a_step(rule, expected):
    assert products(compiled(rule).as_text()) == expected


def test_rows_thin_the_statistics():
    flops = {
        rows: compiled(Rule(statistics_rows=rows)).cost_analysis()["flops"] for rows in (16, None)
    }
    saved = flops[None] - flops[16]
    assert saved > 0.7 * 2 * FULL  # three quarters of the two products, less what is elementwise


@pytest.mark.parametrize(("rule", "expected"), PRODUCTS, ids=str)
def test_products_of_a_convolution(rule, expected):
    program = compiled_convolution(rule)
    text = program.as_text()
    # Results of one input channel or one neuron are the small products, about real mass.
    full = [shape for shape in shapes(text, r"convolution\(") if 1 not in shape]
    assert len(full) == expected
    # What the rule adds besides: small products and passes over x and z.
    plain = compiled_convolution(PLAIN).cost_analysis()["flops"]
    added = program.cost_analysis()["flops"] - plain
    assert added <= (expected - 3 + 1 / CHANNELS + 1 / NEURONS) * CONVOLUTION


@pytest.mark.parametrize("geometry", [{}, {"strides": 2}, {"feature_group_count": 4}], ids=str)
def test_no_patches_are_laid_out(geometry):
    text = compiled_convolution(Rule(), **geometry).as_text()
    assert " gather(" not in text
    assert max(math.prod(shape) for shape in shapes(text)) <= LARGEST


def test_images_thin_the_statistics():
    flops = {
        rows: compiled_convolution(Rule(statistics_rows=rows)).cost_analysis()["flops"]
        for rows in (IMAGES // 4, None)
    }
    # (Three quarters of two products, less what the layer's sums over the rows cost.)
    assert flops[None] - flops[IMAGES // 4] > 0.65 * 2 * CONVOLUTION


def test_one_product_at_a_time_is_in_memory():
    # Two at a time would hold two pairs of operands (x or x^2, and s), each once more in the layout
    # that a kernel gradient wants. One at a time: x^2 and its other layout in the place of x.
    one, two = (
        compiled_convolution(rule).memory_analysis().temp_size_in_bytes
        for rule in (Rule(scale="none"), Rule())
    )
    x, z = (4 * IMAGES * SIDE**2 * channels for channels in (CHANNELS, NEURONS))
    assert two - one <= 2 * x + z
    assert two - one < 2 * (x + z)


class Convolutions(TorchDispatchMode):
    """Counts multiplications and additions of kernel-gradient products, in units of a full one."""

    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            g_z, _, weight = args[:3]
            size = 2 * g_z.numel() * math.prod(weight.shape[1:])
            self.products += [size / CONVOLUTION] * sum(args[-1][:2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("rule", "expected"), PRODUCTS, ids=str)
def test_products_of_a_convolution_in_torch(rule, expected):
    knobs = {name: getattr(rule, name) for name in ("weighting", "scale")}
    # As the functions have it, by which the others are counted.
    rule = torchnorm.Rule(gradient=rule.gradient or "preconditioned", **knobs)
    layer = torchnorm.Conv2d(CHANNELS, NEURONS, WINDOW, padding=1, gate="relu", rule=rule)
    x = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, requires_grad=True)
    z = layer(x)
    with Convolutions() as count:
        z.square().sum().backward()
    full = [size for size in count.products if size > 0.9]
    assert len(full) == expected - 1  # without the forward pass
    assert sum(count.products) - len(full) <= 1 / CHANNELS + 1 / NEURONS


def test_presets_are_the_same_in_both():
    for name in ("BNP", "CENTERED", "NEURONWISE", "PLAIN", "QUASI_DIAGONAL"):
        assert repr(getattr(jaxnorm, name)) == repr(getattr(torchnorm, name))
