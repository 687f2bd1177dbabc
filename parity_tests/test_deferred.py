"""Activations that are not next to their layer, or read several neurons: the oracle is told how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from torch.utils.checkpoint import checkpoint

import jaxnorm
import torchnorm
from parity_tests import cases, oracle
from parity_tests.cases import Case, geometries
from parity_tests.implementations import Gradients, Implementation, in_torch, quick, weights
from parity_tests.implementations.in_jax import swiglu
from parity_tests.matrix import compare
from parity_tests.oracle import Array, Knobs
from parity_tests.tolerances import GATE, slice_error
from torchnorm.tests.versions import WHOLE_GRAPHS

CONV = geometries.CONVOLUTIONS["same"]
EXACT = GATE["float64"]


class Block(NamedTuple):
    """What follows a convolution: plain, with our layer in JAX and in torch, and its slope.

    The functions with our layer take `layer(gate)`, which returns what the layer returns.
    """

    plain: Any
    jax: Any
    torch: Any
    slope: Any


def _normalized(z: Any, axes: tuple[int, ...]) -> Any:
    """Batch normalization without its parameters, in either framework."""
    if isinstance(z, torch.Tensor):
        return (z - z.mean(axes, keepdim=True)) / z.std(axes, keepdim=True, correction=0)
    return (z - z.mean(axes, keepdims=True)) / z.std(axes, keepdims=True)


def _bn_torch(layer: Any) -> Any:
    z, handle = layer(torchnorm.DEFERRED)
    return F.relu(torchnorm.tell_gate(_normalized(z, (0, 2, 3)), handle, "relu"))


def _bn_jax(layer: Any) -> Any:
    z, handle = layer(jaxnorm.DEFERRED)
    return jax.nn.relu(jaxnorm.tell_gate(_normalized(z, (0, 1, 2)), handle, "relu"))


def _applied(gate: Any) -> Any:
    """The gate after a layer that knows it."""
    return lambda layer: gate(layer(gate))


def _neurons(slope: Any) -> Any:
    """A slope of the oracle, for [N,O], on images."""
    return lambda z: slope(z.reshape(-1, z.shape[-1])).reshape(z.shape)


def _maxout(z: Any) -> Any:
    return jnp.maximum(*jnp.split(z, 2, axis=-1))


def _maxout_slope(z: Array) -> Array:
    a, b = np.split(z, 2, axis=-1)
    return np.concatenate([a > b, b > a], axis=-1).astype(float)


def _pool(z: Any) -> Any:
    return nn.max_pool(jax.nn.relu(z), (2, 2), (2, 2))


def _pool_slope(z: Array) -> Array:
    """1 for the winner of each window if it is positive; what is in no window reaches nothing."""
    slope = np.zeros_like(z)
    for n, i, j, c in np.ndindex(len(z), z.shape[1] // 2, z.shape[2] // 2, z.shape[3]):
        window = z[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        slope[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c] = window == max(window.max(), 1e-300)
    return slope


def _prelu(z: Any) -> Any:
    return jnp.where(z > 0, z, 0.25 * z)


#: PyTorch has the channels in axis 1.
BLOCKS = {
    "batch norm, relu": Block(
        lambda z: jax.nn.relu(_normalized(z, (0, 1, 2))),
        _bn_jax,
        _bn_torch,
        lambda z: _normalized(z, (0, 1, 2)) > 0,
    ),
    "glu": Block(
        jax.nn.glu,
        _applied(jaxnorm.JointGate(jax.nn.glu)),
        _applied(torchnorm.JointGate(lambda z: F.glu(z, dim=1))),
        _neurons(oracle.JOINT["glu"]),
    ),
    "swiglu": Block(
        swiglu,
        _applied(jaxnorm.JointGate(swiglu)),
        _applied(torchnorm.JointGate(lambda z: F.silu(z[:, :3]) * z[:, 3:])),
        _neurons(oracle.JOINT["swiglu"]),
    ),
    "maxout": Block(
        _maxout,
        _applied(jaxnorm.JointGate(_maxout)),
        _applied(torchnorm.JointGate(lambda z: torch.maximum(z[:, :3], z[:, 3:]))),
        _maxout_slope,
    ),
    "pooling": Block(
        _pool,
        _applied(jaxnorm.JointGate(_pool)),
        _applied(torchnorm.JointGate(lambda z: F.max_pool2d(F.relu(z), 2))),
        _pool_slope,
    ),
    "prelu": Block(
        _prelu,
        _applied(_prelu),
        _applied(lambda z: F.prelu(z, z.new_tensor([0.25]))),
        lambda z: np.where(z > 0, 1, 0.25),
    ),
}


def _case(block: Block) -> tuple[Case, Array]:
    """A case whose gate is the true slope, the gradient that reaches z, and that of the block."""
    case = cases.make(layer=CONV, gate="silu", seed=3)
    a, pull = jax.vjp(block.plain, jnp.asarray(case.expected.z))
    errors = np.random.default_rng(4).standard_normal(a.shape)
    delta = np.asarray(pull(jnp.asarray(errors))[0])
    slope: Any = np.asarray(block.slope(case.expected.z), np.float64)
    return replace(case, delta=delta, gate=slope), errors


@pytest.mark.parametrize("name", BLOCKS)
def test_jax_blocks(name: str) -> None:
    """Through jit: z, g_x, and what the convolution's parameters get."""
    block = BLOCKS[name]
    case, errors = _case(block)

    @jax.jit
    def run(parameters: Any, x: Any) -> Any:
        layer = lambda gate: jaxnorm.neuronwise_conv(x, *parameters, gate=gate)  # noqa: E731
        return block.jax(layer)

    a, pull = jax.vjp(run, (jnp.asarray(case.kernel), jnp.asarray(case.bias)), jnp.asarray(case.x))
    (g_kernel, g_bias), g_x = pull(jnp.asarray(errors))
    assert slice_error(a, block.plain(jnp.asarray(case.expected.z))) <= EXACT
    arrays = (case.expected.z, *map(np.asarray, (g_x, g_kernel, g_bias)))
    assert not compare.misses(compare.gradients(case, Gradients(*arrays)))


@pytest.mark.parametrize("name", BLOCKS)
def test_torch_blocks(name: str) -> None:
    """The same numbers from PyTorch."""
    block = BLOCKS[name]
    case, errors = _case(block)
    assert case.bias is not None
    kernel = weights.to_torch(case.kernel, inputs=4, outputs=6)
    leaves = [torch.tensor(a, requires_grad=True) for a in (case.x, kernel, case.bias)]
    x, weight, bias = leaves

    def layer(gate: Any) -> Any:
        images = in_torch.channels_first(x, case)
        conv = torchnorm.functional.neuronwise_conv2d
        return conv(images, weight, bias, padding=1, gate=gate)

    a = block.torch(layer).movedim(1, -1)
    assert slice_error(a.detach(), block.plain(jnp.asarray(case.expected.z))) <= EXACT
    a.backward(torch.tensor(errors))
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    g_kernel = weights.to_flax(weight.grad.numpy(), inputs=4, outputs=6)
    arrays = case.expected.z, x.grad.numpy(), g_kernel, bias.grad.numpy()
    assert not compare.misses(compare.gradients(case, Gradients(*arrays)))


@pytest.mark.parametrize("implementation", quick(), ids=lambda i: i.name)
@pytest.mark.parametrize("layer", [None, CONV], ids=["dense", "conv"])
@pytest.mark.parametrize("gate", ["relu", "gelu_tanh"])
def test_deferred_is_the_gate_itself(implementation: Implementation, layer: Any, gate: str) -> None:
    """Told later or told at once, bit for bit."""
    case = cases.make(layer=layer, gate=gate, dtype="float32")
    told = implementation.gradients(replace(case, deferred=True))
    for mine, theirs in zip(told, implementation.gradients(case), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _two_layers(x: Any, kernels: Any, package: Any, silu: Any, slope: Any, dense: Any) -> Any:
    """SwiGLU of two layers: each hears from the other what its own slope is."""
    (a, handle_a), (b, handle_b) = (dense(x, k, c, gate=package.DEFERRED) for k, c in kernels)
    factor, rate = silu(a), slope(a)
    a = package.tell_gate(a, handle_a, slope=b * rate)
    b = package.tell_gate(b, handle_b, slope=factor)
    return silu(a) * b


def test_swiglu_of_two_layers() -> None:
    """Each kernel by the product's derivative, in both packages."""
    case = cases.make(gate="silu", seed=8)
    assert case.bias is not None
    rng = np.random.default_rng(9)
    other = rng.permuted(case.kernel, axis=0)
    kernels = ((case.kernel, case.bias), (other, 0.3 * case.bias))
    silu, rate = oracle.GATES["silu"]
    a, b = (case.x @ k + c for k, c in kernels)
    deltas = case.delta * b * rate(a), case.delta * silu(a)
    expected = [
        oracle.dense(case.x, *parameters, delta, slope, Knobs())
        for parameters, delta, slope in zip(kernels, deltas, (b * rate(a), silu(a)), strict=True)
    ]

    def by_jax(kernels: Any) -> Any:
        arguments = (jaxnorm, jax.nn.silu, _silu_slope, _dense_jax)
        return _two_layers(jnp.asarray(case.x), kernels, *arguments)

    got = jax.vjp(by_jax, kernels)[1](jnp.asarray(case.delta))[0]
    leaves = [[torch.tensor(p.T.copy(), requires_grad=True) for p in ps] for ps in kernels]
    x = torch.tensor(case.x)
    dense = torchnorm.functional.neuronwise_linear
    z = _two_layers(x, leaves, torchnorm, F.silu, _silu_slope_torch, dense)
    z.backward(torch.tensor(case.delta))
    for right, (g_kernel, g_bias), (weight, bias) in zip(expected, got, leaves, strict=True):
        assert slice_error(g_kernel, right.g_kernel, axes=(0, 1)) <= EXACT
        assert slice_error(weight.grad.T, right.g_kernel, axes=(0, 1)) <= EXACT
        for g in (g_bias, bias.grad):
            assert slice_error(g, right.g_bias, axes=()) <= EXACT


def _dense_jax(x: Any, kernel: Any, bias: Any, gate: Any) -> Any:
    return jaxnorm.neuronwise_dense(x, jnp.asarray(kernel), jnp.asarray(bias), gate=gate)


def _silu_slope(a: Any) -> Any:
    return jax.nn.sigmoid(a) * (1 + a * jax.nn.sigmoid(-a))


def _silu_slope_torch(a: Any) -> Any:
    return a.sigmoid() * (1 + a * (-a).sigmoid())


def test_a_learnable_slope() -> None:
    """PReLU: the layer sees the slope's value, and the slope gets its own, ordinary gradient."""
    case = cases.make(gate="leaky_relu", seed=2)
    slope: Any = np.where(case.expected.z > 0, 1.0, 0.3)
    expected = replace(case, gate=slope, delta=case.delta * slope).expected
    g_alpha = (case.delta * np.minimum(case.expected.z, 0)).sum()

    @jax.jit
    def run(kernel: Any, bias: Any, alpha: Any) -> Any:
        prelu = lambda z: jnp.where(z > 0, z, alpha * z)  # noqa: E731
        return prelu(jaxnorm.neuronwise_dense(jnp.asarray(case.x), kernel, bias, gate=prelu))

    got = jax.vjp(run, case.kernel, case.bias, 0.3)[1](jnp.asarray(case.delta))
    prelu = torch.nn.PReLU(init=0.3, dtype=torch.float64)
    rule = torchnorm.Rule(gradient="preconditioned")
    layer = torchnorm.Linear(*case.kernel.shape, gate=prelu, rule=rule, dtype=torch.float64)
    named = {"weight": torch.tensor(case.kernel.T.copy()), "bias": torch.tensor(case.bias)}
    layer.load_state_dict(named)
    prelu(layer(torch.tensor(case.x))).backward(torch.tensor(case.delta))
    assert layer.weight.grad is not None
    theirs = layer.weight.grad.T, layer.bias.grad, prelu.weight.grad
    for g_kernel, g_bias, g_slope in (got, theirs):
        assert slice_error(g_kernel, expected.g_kernel, axes=(0, 1)) <= EXACT
        assert slice_error(g_bias, expected.g_bias, axes=()) <= EXACT
        assert g_slope is not None
        assert slice_error(np.ravel(g_slope), np.ravel(g_alpha), axes=()) <= EXACT


MIXING = {
    "softmax": (jax.nn.softmax, lambda z: z.softmax(-1)),
    "cumulative sum": (lambda z: jnp.cumsum(z, -1), lambda z: z.cumsum(-1)),
    "centering": (lambda z: z - z.mean(), lambda z: z - z.mean()),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_entries_is_refused(name: str) -> None:
    """In the same words in both packages; JointGate is the way out."""
    x = np.linspace(-1, 1, 12).reshape(4, 3)
    ours, theirs = MIXING[name]
    with pytest.raises(ValueError, match="mixes entries") as caught:
        gate = lambda k: jaxnorm.neuronwise_dense(x, k, gate=ours).sum()  # noqa: E731
        jax.grad(gate)(jnp.eye(3))
    text = str(caught.value)
    with pytest.raises(ValueError, match=r"use JointGate\(callable\)") as caught:
        weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
        torchnorm.functional.neuronwise_linear(torch.tensor(x), weight, gate=theirs)
    assert str(caught.value) == text


# What `tell_gate` must survive in JAX.


def _data() -> tuple[Any, ...]:
    case = cases.make(gate="silu", seed=5)
    return tuple(map(jnp.asarray, (case.kernel, case.bias, case.x, case.delta)))


def _deferred(kernel: Any, bias: Any, x: Any, axis_name: Any = None) -> Any:
    """A layer, something in between that does not mix samples, a deferred activation."""
    dense = jaxnorm.neuronwise_dense
    z, handle = dense(x, kernel, bias, gate=jaxnorm.DEFERRED, axis_name=axis_name)
    return jax.nn.silu(jaxnorm.tell_gate(1.5 * z - 0.5, handle, "silu"))


def _gradients(kernel: Any, bias: Any, x: Any, errors: Any, *more: Any) -> Any:
    """The gradients at kernel and bias."""
    return jax.grad(lambda k, b: jnp.sum(_deferred(k, b, x, *more) * errors), (0, 1))(kernel, bias)


def _same(actual: Any, expected: Any) -> None:
    assert slice_error(actual[0], expected[0], axes=(-2, -1)) <= EXACT
    assert slice_error(actual[1], expected[1], axes=()) <= EXACT


def test_jit_and_remat() -> None:
    """Same numbers; under remat the slope is computed twice."""
    data = _data()
    expected = _gradients(*data)
    _same(jax.jit(_gradients)(*data), expected)

    def remat(kernel: Any, bias: Any, x: Any, errors: Any) -> Any:
        run = jax.checkpoint(_deferred)
        return jax.grad(lambda k, b: jnp.sum(run(k, b, x) * errors), (0, 1))(kernel, bias)

    _same(jax.jit(remat)(*data), expected)


def test_vmap_and_scan() -> None:
    """Each mapped batch has its own statistics, as without `tell_gate`; a scan adds them up."""
    kernel, bias, x, errors = _data()
    parts = [a.reshape(3, -1, a.shape[-1]) for a in (x, errors)]
    one, mapping = jax.jit(_gradients), jax.jit(jax.vmap(_gradients, (None, None, 0, 0)))
    each = [one(kernel, bias, *part) for part in zip(*parts, strict=True)]
    mapped = mapping(kernel, bias, *parts)
    for index, expected in enumerate(each):
        _same([g[index] for g in mapped], expected)

    def total(kernel: Any, bias: Any) -> Any:
        def body(carry: Any, part: Any) -> Any:
            return carry + jnp.sum(_deferred(kernel, bias, part[0]) * part[1]), None

        return jax.lax.scan(body, 0.0, tuple(parts))[0]

    summed = jax.tree.map(lambda *g: sum(g), *each)
    _same(jax.jit(jax.grad(total, (0, 1)))(kernel, bias), summed)


def test_shard_map() -> None:
    """A named axis: the statistics of the whole batch."""
    data = _data()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shards = (P(), P(), P("data"), P("data"))
    local = lambda *arrays: _gradients(*arrays, "data")  # noqa: E731
    mapped = jax.shard_map(local, mesh=mesh, in_specs=shards, out_specs=(P(), P()))
    _same(jax.jit(mapped)(*data), _gradients(*data))


# And in PyTorch.


def _deferred_torch(x: Any, weight: Any, bias: Any) -> Any:
    linear = torchnorm.functional.neuronwise_linear
    z, handle = linear(x, weight, bias, gate=torchnorm.DEFERRED)
    return F.silu(torchnorm.tell_gate(1.5 * z - 0.5, handle, "silu"))


@pytest.mark.filterwarnings("ignore")  # of torch.compile's own
@pytest.mark.parametrize(
    "mode", [pytest.param("compile", marks=WHOLE_GRAPHS), "checkpoint", "func"]
)
def test_tell_gate_in_torch(mode: str) -> None:
    """The numbers of JAX, compiled, checkpointed and through torch.func."""
    kernel, bias, x, errors = _data()
    expected = _gradients(kernel, bias, x, errors)
    tensors = [torch.tensor(np.asarray(a)) for a in (x, kernel.T, bias, errors)]
    if mode == "func":
        loss = lambda w, b: (_deferred_torch(tensors[0], w, b) * tensors[3]).sum()  # noqa: E731
        weight_grad, bias_grad = torch.func.grad(loss, (0, 1))(*tensors[1:3])
    else:
        torch.compiler.reset()
        compiled = torch.compile(_deferred_torch, fullgraph=True, backend="aot_eager")
        checkpointed = lambda *a: checkpoint(_deferred_torch, *a, use_reentrant=False)  # noqa: E731
        weight, bias = (tensor.requires_grad_() for tensor in tensors[1:3])
        run = compiled if mode == "compile" else checkpointed
        run(tensors[0], weight, bias).backward(tensors[3])
        weight_grad, bias_grad = weight.grad, bias.grad
    assert weight_grad is not None
    _same((weight_grad.T, bias_grad), expected)
