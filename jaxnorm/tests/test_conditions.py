"""The conditions of real training: low precision, accumulation, checkpoints, donation, layouts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.layout import Format, Layout

import jaxnorm
from jaxnorm import Rule, neuronwise_conv, neuronwise_dense
from parity_tests.tolerances import (
    GATE,
    LOW_PRECISION_FACTOR,
    ROUNDING,
    TEXTBOOK,
    VISIBLE,
    slice_error,
)

PRECONDITIONED = jaxnorm.Rule(gradient="preconditioned")


def arrays(kind, rows=16):
    """(kernel, bias, x, gradient at z) in float64; channels of unlike scales and means."""
    rng = np.random.default_rng(0)
    space, window = ((), ()) if kind == "dense" else ((6, 6), (3, 3))
    x = rng.normal(size=(rows, *space, 3)) * [1, 10, 0.1] + [0, 30, 1]
    kernel = rng.normal(size=(*window, 3, 4))
    bias = -30 * kernel.sum(tuple(range(len(window))))[1]  # about half of the samples are active
    return kernel, bias, x, rng.normal(size=(rows, *space, 4))


def layer(kind):
    """The layer as a function of (x, kernel, bias)."""
    return {"dense": neuronwise_dense, "conv": neuronwise_conv}[kind]


def gradients(kind, **kwargs):
    """A function of (kernel, bias, x, g_z): the gradients at the first three."""
    kwargs = {"gate": "gelu"} | kwargs

    def loss(kernel, bias, x, g_z):
        return jnp.sum(layer(kind)(x, kernel, bias, **kwargs) * g_z)

    return jax.grad(loss, (0, 1, 2))


def error(actual, expected):
    """The worst over all arrays, per neuron; a bias vector is one slice."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(slice_error(a, e, axes=(-1,) if e.ndim > 1 else ()) for a, e in pairs)


class Net(nn.Module):
    """A convolution and a dense layer, with bias, ReLU and GELU."""

    conv: type = jaxnorm.linen.Conv
    dense: type = jaxnorm.linen.Dense
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        """Images to four numbers."""
        kwargs = {"param_dtype": jnp.float64, "axis_name": self.axis_name, "rule": PRECONDITIONED}
        x = nn.relu(self.conv(4, (3, 3), strides=2, gate="relu", name="first", **kwargs)(x))
        x = x.reshape(*x.shape[:-3], -1)
        return nn.gelu(self.dense(4, gate="gelu", name="second", **kwargs)(x))


def batch(rows=16):
    """Images and targets, and parameters for them."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 6, 6, 3)) * [1, 4, 0.1] + [0, 3, 1]
    shapes = {"first": (3, 3, 3, 4), "second": (36, 4)}
    params = {
        name: {"kernel": 0.2 * rng.normal(size=shape), "bias": rng.normal(size=shape[-1])}
        for name, shape in shapes.items()
    }
    return jax.tree.map(jnp.asarray, params), x, rng.normal(size=(rows, 4))


def mean_loss(params, x, y, net=Net()):
    """A mean over the batch."""
    return jnp.mean((net.apply({"params": params}, x) - y) ** 2)


# Low precision.


def textbook(x, kernel, bias, delta):
    """(g_W, g_b) of a dense ReLU layer as one would write it down, in the dtype of its arrays."""
    s = (x @ kernel + bias > 0).astype(x.dtype)
    rule = Rule()
    mass = s.sum(0)
    trust = mass / (mass + rule.shrinkage)
    centered = x - x.mean(0)
    own = centered.T @ s / mass
    mean = x.mean(0)[:, None] + trust * own
    deviation = centered[:, :, None] - own
    spread = (deviation * deviation * s[:, None, :]).sum(0) / mass
    prior = (centered * centered).mean(0)[:, None]
    variance = trust * spread + (1 - trust) * prior + trust * (1 - trust) * own * own
    square = variance + rule.damping * variance.mean(0) + rule.epsilon
    size = square.mean(0)  # all inputs vary
    g_kernel = ((x[:, :, None] - mean) * delta[:, None, :]).sum(0) * (size / square)
    return g_kernel, delta.sum(0) - (mean * g_kernel).sum(0)


def coarse(kind):
    """Arrays on a grid so coarse that z is exact in bfloat16, and no gate depends on rounding."""
    rng = np.random.default_rng(2)
    space, window = ((), ()) if kind == "dense" else ((6, 6), (3, 3))
    grid = lambda n, *shape: rng.integers(-n, n + 1, shape) / 2  # noqa: E731
    x = grid(4, 32, *space, 3) + np.array([0, 1, -0.5])
    kernel, bias = grid(2, *window, 3, 4), grid(1, 4) + 0.25
    return kernel, bias, x, np.asarray(rng.normal(size=(32, *space, 4)), jnp.bfloat16)


def as_matrix(kind, kernel, x, delta):
    """(kernel, x, delta) of the dense layer that a convolution is, for the textbook."""
    if kind == "dense":
        return kernel, x, delta
    numbers = ("NHWC", "HWIO", "NHWC")
    patches = jax.lax.conv_general_dilated_patches(
        x, (3, 3), (1, 1), "SAME", dimension_numbers=numbers
    )  # the channels outside, the window inside
    matrix = jnp.moveaxis(kernel, 2, 0).reshape(-1, kernel.shape[-1])
    return matrix, patches.reshape(-1, patches.shape[-1]), delta.reshape(-1, delta.shape[-1])


def low_precision_layer(kind, reference, param_dtype):
    """A function of (params, x): a layer of linen or nnx that computes in bfloat16."""
    kwargs = {"gate": "relu", "dtype": jnp.bfloat16, "param_dtype": param_dtype}
    kwargs["rule"] = PRECONDITIONED
    if reference == "linen":
        make = jaxnorm.linen.Dense if kind == "dense" else jaxnorm.linen.Conv
        size = () if kind == "dense" else ((3, 3),)
        return lambda params, x: make(4, *size, **kwargs).apply({"params": params}, x)
    make = jaxnorm.nnx.Linear if kind == "dense" else jaxnorm.nnx.Conv
    size = () if kind == "dense" else ((3, 3),)
    structure, _ = nnx.split(make(3, 4, *size, rngs=nnx.Rngs(0), **kwargs))

    def run(params, x):
        state = nnx.State({name: nnx.Param(value) for name, value in params.items()})
        return nnx.merge(structure, state)(x)

    return run


@pytest.mark.parametrize(
    ("reference", "kind", "param_dtype"),
    [
        ("linen", "conv", "float32"),
        ("nnx", "dense", "bfloat16"),
        *(
            pytest.param(*arguments, marks=pytest.mark.slow)
            for arguments in (
                ("linen", "conv", "bfloat16"),
                ("linen", "dense", "bfloat16"),
                ("linen", "dense", "float32"),
                ("nnx", "conv", "bfloat16"),
                ("nnx", "conv", "float32"),
                ("nnx", "dense", "float32"),
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cast from bfloat16")
def test_bfloat16(reference, kind, param_dtype):
    """Parameters in bfloat16, or in float32 with bfloat16 products only."""
    kernel, bias, x, delta = coarse(kind)
    params = {"kernel": jnp.asarray(kernel, param_dtype), "bias": jnp.asarray(bias, param_dtype)}
    run = low_precision_layer(kind, reference, param_dtype)

    @jax.jit
    def backward(params, x, delta):
        z, pull = jax.vjp(run, params, x)
        return z, *pull(delta)

    z, got, g_x = backward(params, jnp.asarray(x, "bfloat16"), jnp.asarray(delta))
    assert (z.dtype, g_x.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert {g.dtype.name for g in jax.tree.leaves(got)} == {param_dtype}

    right = jax.jit(gradients(kind, gate="relu"))(kernel, bias, x, delta.astype("float64"))[:2]
    low = [jnp.asarray(a, "bfloat16") for a in (kernel, x, delta)]
    matrix, rows, tall = as_matrix(kind, *low)
    with jax.numpy_rank_promotion("allow"):
        naive = jax.jit(textbook)(rows, matrix, jnp.asarray(bias, "bfloat16"), tall)
    ours = as_matrix(kind, got["kernel"], *low[1:])[0], got["bias"]
    right = as_matrix(kind, right[0], *low[1:])[0], right[1]
    for mine, theirs, expected in zip(ours, naive, right, strict=True):
        axes = (-1,) if expected.ndim > 1 else ()
        yardstick = slice_error(theirs, expected, axes=axes)
        assert yardstick < TEXTBOOK, "a broken yardstick"
        bound = LOW_PRECISION_FACTOR * yardstick + ROUNDING["bfloat16"]
        assert slice_error(mine, expected, axes=axes) <= bound


# Gradient accumulation.


def in_four(x):
    """Four micro-batches."""
    return x.reshape(4, -1, *x.shape[1:])


def test_multi_steps_average_what_the_micro_batches_say():
    """Documented: not the whole batch's, whose statistics nobody has seen."""
    kernel, bias, x, y = arrays("dense")
    params = jnp.asarray(kernel), jnp.asarray(bias)
    tx = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=4)

    def loss(params, x, y):
        return jnp.mean((jax.nn.gelu(neuronwise_dense(x, *params, gate="gelu")) - y) ** 2)

    gradient = jax.jit(jax.grad(loss))

    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    got, state, each = params, tx.init(params), []
    for micro in zip(in_four(x), in_four(y), strict=True):
        each.append(gradient(params, *micro))
        got, state = step(got, state, each[-1])
    by_hand = jax.tree.map(lambda p, *g: p - sum(g) / 4, params, *each)
    # Optax divides by the number of micro-batches in float32.
    assert error(got, by_hand) <= GATE["float32"]
    whole = jax.tree.map(lambda p, g: p - g, params, gradient(params, x, y))
    assert error(got, whole) > VISIBLE


def test_micro_batches_that_share_their_sums_are_the_whole_batch():
    """The exact way: one mapped axis; `jax.checkpoint` keeps no activations of any of them."""
    params, x, y = batch()

    def accumulated(params, x, y, axis_name):
        net = Net(axis_name=axis_name)
        loss = jax.checkpoint(lambda params, x, y: mean_loss(params, x, y, net))
        # The gradient is taken inside of the mapped function, and averaged as a mean loss asks.
        each = jax.vmap(jax.grad(loss), (None, 0, 0), axis_name="micro")(params, x, y)
        return jax.tree.map(lambda g: g.mean(0), each)

    run = jax.jit(accumulated, static_argnums=3)
    expected = jax.jit(jax.grad(mean_loss))(params, x, y)
    assert error(run(params, in_four(x), in_four(y), "micro"), expected) <= GATE["float64"]
    assert error(run(params, in_four(x), in_four(y), None), expected) > VISIBLE


@pytest.mark.parametrize(
    ("kind", "gate"),
    [
        ("dense", "gelu"),
        pytest.param("conv", "relu", marks=pytest.mark.slow),
        pytest.param("dense", "relu", marks=pytest.mark.slow),
        pytest.param("conv", "gelu", marks=pytest.mark.slow),
    ],
)
def test_vmap_with_a_name_and_without(kind, gate):
    kernel, bias, x, g_z = arrays(kind)
    expected = jax.jit(gradients(kind, gate=gate))(kernel, bias, x, g_z)

    def mapped(axis_name):
        each = jax.vmap(
            gradients(kind, gate=gate, axis_name=axis_name), (None, None, 0, 0), axis_name="micro"
        )
        g_w, g_b, g_x = jax.jit(each)(kernel, bias, in_four(x), in_four(g_z))
        return g_w.sum(0), g_b.sum(0), g_x.reshape(x.shape)

    assert error(mapped("micro"), expected) <= GATE["float64"]
    assert error(mapped(None), expected) > VISIBLE


# Recomputation, layers in a loop.


def test_remat_of_linen_layers_and_of_the_loss():
    params, x, y = batch()
    expected = jax.jit(jax.grad(mean_loss))(params, x, y)
    layers = Net(nn.remat(jaxnorm.linen.Conv), nn.remat(jaxnorm.linen.Dense))
    lifted = jax.jit(jax.grad(lambda *a: mean_loss(*a, layers)))(params, x, y)
    assert error(lifted, expected) <= GATE["float64"]
    nothing = jax.checkpoint_policies.nothing_saveable
    recomputed = jax.grad(jax.checkpoint(mean_loss, policy=nothing))
    assert error(jax.jit(recomputed)(params, x, y), expected) <= GATE["float64"]


@pytest.mark.parametrize("kind", ["dense", pytest.param("conv", marks=pytest.mark.slow)])
def test_remat_of_nnx_layers(kind):
    kernel, bias, x, g_z = arrays(kind)
    kwargs = {"gate": "gelu", "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    kwargs["rule"] = PRECONDITIONED
    dense = kind == "dense"
    module = (
        jaxnorm.nnx.Linear(3, 4, **kwargs) if dense else jaxnorm.nnx.Conv(3, 4, (3, 3), **kwargs)
    )
    module.kernel[...], module.bias[...] = kernel, bias
    call = nnx.remat(lambda module, x: module(x))
    got = nnx.jit(nnx.grad(lambda module: jnp.sum(call(module, x) * g_z)))(module)
    expected = jax.jit(gradients(kind))(kernel, bias, x, g_z)
    assert error((got.kernel[...], got.bias[...]), expected[:2]) <= GATE["float64"]


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True], ids=["", "remat"])
def test_scan_over_convolutions(remat):
    """Two layers in a loop are two layers one after the other."""
    _, _, x, g_z = arrays("conv")
    x, g_z = x / [1, 30, 1], g_z[..., :3]

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            kwargs = {"param_dtype": jnp.float64, "rule": PRECONDITIONED}
            return nn.tanh(jaxnorm.linen.Conv(3, (3, 3), gate="tanh", **kwargs)(x)), None

    one = nn.remat(Layer, prevent_cse=False) if remat else Layer
    stack = nn.scan(one, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()
    params = stack.init(jax.random.key(0), x, None)["params"]
    got = jax.jit(jax.grad(lambda p: jnp.sum(stack.apply({"params": p}, x, None)[0] * g_z)))(params)

    def unrolled(params):
        (conv,) = params.values()
        h = x
        for k in range(2):
            h = neuronwise_conv(h, conv["kernel"][k], conv["bias"][k], gate="tanh")
            h = jnp.tanh(h)
        return jnp.sum(h * g_z)

    expected = jax.jit(jax.grad(unrolled))(params)
    for k in range(2):
        layers = [jax.tree.map(lambda a, k=k: a[k], g) for g in (got, expected)]
        assert error(*layers) <= 2 * GATE["float64"]  # errors of one layer enter the next


# Buffers and layouts.


def test_donated_parameters_and_optimizer_state():
    params, x, y = batch()
    tx = optax.sgd(0.01, momentum=0.9)

    def step(params, state, x, y):
        updates, state = tx.update(jax.grad(mean_loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    results = []
    for donated in ((), (0, 1)):
        run = jax.jit(step, donate_argnums=donated)
        carry = jax.tree.map(jnp.copy, (params, tx.init(params)))
        first = carry
        for _ in range(3):
            carry = run(*carry, x, y)
        assert all(a.is_deleted() == bool(donated) for a in jax.tree.leaves(first))
        results.append(carry[0])
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, results), strict=True))


@pytest.mark.parametrize("kind", ["dense", pytest.param("conv", marks=pytest.mark.slow)])
def test_layouts(kind):
    """Transposed inputs, and arrays whose last axis is not the fastest in memory."""
    kernel, bias, x, g_z = arrays(kind)
    run = jax.jit(gradients(kind))
    expected = run(kernel, bias, x, g_z)
    order = tuple(range(x.ndim))[::-1]
    turned = jax.jit(lambda k, b, x, g: gradients(kind)(k, b, x.transpose(order), g))
    back = [np.ascontiguousarray(x.transpose(order))]
    assert error(turned(kernel, bias, *back, g_z), expected) <= GATE["float64"]

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = [
        jax.device_put(a, Format(Layout(major_to_minor=tuple(range(a.ndim))[::-1]), device))
        for a in (kernel, x, g_z)
    ]
    assert placed[1].format.layout.major_to_minor == order
    got = run(placed[0], bias, *placed[1:])
    assert error(got, expected) <= GATE["float64"]
