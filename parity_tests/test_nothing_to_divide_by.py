"""Layers in which a scale is missing, or is at the end of what a number can hold, in both packages.

The step is finite, is that of the plain size, and the same in JAX and in PyTorch, in the stateless
form and by the optimizer. What "the plain size" is: with C the plain gradient about the mean, SGD's
step of a kernel is ``C r^2 / sigma^2``; with a damping of d and I inputs of mean variance v,
``r^2 = (1 + d) v`` and ``d v <= sigma^2 <= (I + d) v``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxnorm
import torchnorm
from parity_tests.tolerances import GATE, VISIBLE, slice_error

DAMPING = 0.1
#: Adam divides by the size of a gradient plus this.
NOTHING = 1e-30
N, I, O = 24, 5, 4  # noqa: E741


class Layer(NamedTuple):
    """A layer behind which a ReLU comes, its batch and the gradient at its z."""

    x: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    delta: np.ndarray

    def cast(self, dtype: str) -> Layer:
        """In another precision."""
        return Layer(*(a.astype(dtype) for a in self))

    def centered(self) -> np.ndarray:
        """The plain gradient of the kernel about the mean of the samples that a neuron counts."""
        x, kernel, bias, delta = (a.astype(np.float64) for a in self)
        s = (x @ kernel + bias > 0).astype(float)
        n = s.sum(0)
        trust = n / (n + 8)
        own = np.where(n > 0, x.T @ s / np.maximum(n, 1), 0)
        mean = (1 - trust) * x.mean(0)[:, None] + trust * own
        return x.T @ delta - mean * delta.sum(0)


def layer(inputs: int = I, outputs: int = O, scale: float = 1.0) -> Layer:
    """One whose neurons fire on some samples; of small inputs on all: its weights are 0.

    (A small step of large weights would have no digits.)
    """
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N, inputs)) * scale
    kernel, bias = rng.normal(size=(inputs, outputs)) / scale, 0.3 * rng.normal(size=outputs)
    if scale < 1:
        kernel, bias = 0 * kernel, abs(bias)
    return Layer(x, kernel, bias, rng.normal(size=(N, outputs)))


def with_inputs(x: Any) -> Layer:
    """With other inputs of some of the columns, by number."""
    made = layer()
    new = made.x.copy()
    for at, value in x.items():
        new[:, at] = value
    return made._replace(x=new)


def stateless(framework: str, made: Layer) -> list[np.ndarray]:
    """[dW [I, O], db] of SGD with a rate of 1."""
    x, kernel, bias, delta = made
    if framework == "jax":
        dense = jaxnorm.neuronwise_dense

        def run(kernel: Any, bias: Any) -> Any:
            return dense(jnp.asarray(x), kernel, bias, gate="relu")

        grads = jax.vjp(run, jnp.asarray(kernel), jnp.asarray(bias))[1](jnp.asarray(delta))
        return [-np.asarray(g) for g in grads]
    weight, offset = (torch.tensor(a.T.copy(), requires_grad=True) for a in (kernel, bias))
    z = torchnorm.functional.neuronwise_linear(torch.tensor(x), weight, offset, gate="relu")
    z.backward(torch.tensor(delta))
    return [-g.numpy().T for g in (weight.grad, offset.grad) if g is not None]


def by_optimizer(framework: str, made: Layer, *, adam: bool = False) -> list[np.ndarray]:
    """The same, of the second of two steps on the batch; the first makes none."""
    x, kernel, bias, delta = made
    inputs, outputs = kernel.shape
    if framework == "jax":
        settings = {"param_dtype": x.dtype, "kernel_init": jax.nn.initializers.zeros}
        dense = jaxnorm.linen.Dense(outputs, gate="relu", **settings)
        params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        stats = jaxnorm.linen.init_statistics(dense, {"params": params}, jnp.asarray(x))
        inner = optax.adam(1.0, eps=NOTHING) if adam else optax.sgd(1.0)
        tx = jaxnorm.in_neuron_coordinates(inner)

        def run(params: Any, stats: Any) -> Any:
            return dense.apply({"params": params, "neuron_stats": stats}, jnp.asarray(x))

        @jax.jit
        def step(params: Any, stats: Any) -> Any:
            grads, batch = jax.vjp(run, params, stats)[1](jnp.asarray(delta))
            stats = jaxnorm.update_statistics(stats, batch)
            return tx.update(grads, tx.init(params), params, neuron_stats=stats)[0], stats

        updates, _ = step(params, step(params, stats)[1])
        return [np.asarray(updates[name]) for name in ("kernel", "bias")]
    linear = torchnorm.Linear(inputs, outputs, gate="relu", dtype=torch.tensor(x).dtype)
    linear.load_state_dict({"weight": torch.tensor(kernel.T.copy()), "bias": torch.tensor(bias)})
    inner: Any = torch.optim.SGD(linear.parameters(), lr=0.0)
    if adam:
        inner = torch.optim.Adam(linear.parameters(), lr=0.0, eps=NOTHING)
    optimizer = torchnorm.optim.in_neuron_coordinates(inner, linear)
    for rate in (0.0, 1.0):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        linear(torch.tensor(x)).backward(torch.tensor(delta))
        if adam:
            optimizer.state.clear()  # the first step of Adam is what is asked for
        before = [p.detach().clone() for p in linear.parameters()]
        optimizer.step()
    pairs = zip(linear.parameters(), before, strict=True)
    return [(p.detach() - old).numpy().T for p, old in pairs]


FORMS = {"stateless": stateless, "by the optimizer": by_optimizer}
EVERY = [
    ("jax", "stateless"),
    ("jax", "by the optimizer"),
    ("torch", "stateless"),
    ("torch", "by the optimizer"),
]


def steps(made: Layer) -> list[list[np.ndarray]]:
    """In every form of both packages; finite, and all the same."""
    found = [FORMS[form](framework, made) for framework, form in EVERY]
    gate = 10 * GATE[made.x.dtype.name]
    for each in found:
        assert all(np.isfinite(a).all() for a in each)
        for a, b in zip(each, found[0], strict=True):
            if np.any(b):
                assert slice_error(a, b, axes=()) <= gate
            else:
                assert not np.any(a)
    return found


def of_plain_size(made: Layer, which: Any = slice(None)) -> None:
    """The steps of the inputs that vary; the others make none."""
    still = np.ptp(made.x, axis=0) == 0
    plain, inputs = made.centered()[~still], len(made.kernel)
    least, most = (1 + DAMPING) / (inputs + DAMPING), (1 + DAMPING) / DAMPING
    # Of what damping adds, inputs that never change have a share.
    least, most = least * (~still).mean(), most / max((~still).mean(), 1e-9)
    for kernel, _ in steps(made):
        assert not np.any(kernel[still])
        ratio = (kernel[~still] / -plain)[:, which]
        assert (ratio >= 0.99 * least).all()
        assert (ratio <= 1.01 * most).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.0, 3.7])
def test_all_inputs_are_constant(dtype: str, value: float) -> None:
    """The kernel does not move, and the bias as in the plain layer."""
    made = with_inputs(dict.fromkeys(range(I), value)).cast(dtype)
    for kernel, bias in steps(made):
        assert not kernel.any()
        assert slice_error(bias, -made.delta.sum(0), axes=()) <= 10 * GATE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_input_varies_among_constants(dtype: str) -> None:
    """By the plain step about its mean, exactly but for what is damped."""
    of_plain_size(with_inputs({0: 0.0, 1: 3.7, 3: -1.0, 4: 1e3}).cast(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, O), (I, 1), (1, 1)])
def test_one_input_or_one_neuron(dtype: str, shape: tuple[int, int]) -> None:
    """One input has the plain step about its mean."""
    made = layer(*shape).cast(dtype)
    of_plain_size(made)
    if shape[0] == 1:
        for kernel, _ in steps(made):
            assert slice_error(kernel, -made.centered(), axes=()) <= 20 * GATE[dtype]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shape", [(0, O), (I, 0), (0, 0)])
def test_a_layer_without_inputs_or_neurons(shape: tuple[int, int]) -> None:
    """There is no kernel to step; a bias steps as in the plain layer."""
    rng = np.random.default_rng(0)
    x, delta = rng.normal(size=(N, shape[0])), rng.normal(size=(N, shape[1]))
    made = Layer(x, np.zeros(shape), np.ones(shape[1]), delta)
    for framework, form in EVERY:
        kernel, bias = FORMS[form](framework, made)
        assert kernel.shape == shape
        np.testing.assert_allclose(bias, -delta.sum(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *(("float64", scale) for scale in (1e-20, 1e-10, 1.0, 1e10, 1e18, 1e20)),
        *(("float32", scale) for scale in (1e-10, 1.0, 1e10, 1e18)),
    ],
)
def test_scales(dtype: str, scale: float) -> None:
    """Whatever the unit of x is, the step has the plain one's."""
    of_plain_size(layer(scale=scale).cast(dtype))


def test_scales_whose_squares_float32_cannot_hold() -> None:
    """Beyond the largest: the plain gradient. Below the smallest: as if nothing varied."""
    made = layer(scale=1e20).cast("float32")
    for kernel, bias in steps(made):
        assert slice_error(kernel, -made.x.T @ made.delta, axes=()) <= 1e-5
        assert slice_error(bias, -made.delta.sum(0), axes=()) <= 1e-5
    made = layer(scale=1e-21).cast("float32")
    for kernel, _ in steps(made):
        assert not kernel.any()


@pytest.mark.parametrize("share", [0.9, 0.95, 0.99])
def test_squares_whose_sum_overflows(share: float) -> None:
    """Over the inputs of a neuron, and not yet over its few samples: the plain gradient."""
    made = layer(64)
    few = Layer(made.x[:4], made.kernel, np.full(O, 1e3), made.delta[:4])
    scale = np.sqrt(share) * np.sqrt(np.finfo(np.float32).max / few.x.var(0).sum())
    few = few._replace(x=few.x * scale, kernel=few.kernel / scale).cast("float32")
    for framework in ("jax", "torch"):
        kernel, _ = stateless(framework, few)
        assert np.isfinite(kernel).all()
        assert np.abs(kernel).max() <= 12 * np.abs(few.centered()).max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_neuron_that_is_dead(dtype: str) -> None:
    """It has the layer's moments; the size of the others' steps does not see it."""
    made = layer().cast(dtype)
    bias, delta = made.bias.copy(), made.delta.copy()
    bias[1] = -1e4
    dead = made._replace(bias=bias)
    of_plain_size(dead)
    delta[:, 1] = 0
    for ours, whole in zip(steps(dead._replace(delta=delta)), steps(made), strict=True):
        assert not ours[0][:, 1].any()
        others = [0, 2, 3]
        assert slice_error(ours[0][:, others], whole[0][:, others]) <= GATE[dtype]


@pytest.mark.parametrize(("framework", "form"), EVERY)
def test_one_neuron_whose_numbers_are_not_finite(framework: str, form: str) -> None:
    """As in the plain layer, and no other neuron sees it."""
    made = layer()
    kernel, delta = made.kernel.copy(), made.delta.copy()
    kernel[2, 1] = np.nan
    delta[3, 1] = np.nan
    found = FORMS[form](framework, made._replace(kernel=kernel, delta=delta))
    expected, others = FORMS[form](framework, made), [0, 2, 3]
    for a, b in zip(found, expected, strict=True):
        assert slice_error(a[..., others], b[..., others], axes=()) <= GATE["float64"]
        assert not np.isfinite(a[..., 1]).any()


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_frozen_entries_do_not_change_the_others(framework: str) -> None:
    """A gradient of 0 is a gradient of 0: the sizes are those of what is read."""
    made = layer()
    x = made.x.copy()
    delta = made.delta.copy()
    # Of one neuron one input has a plain gradient of exactly 0.
    x[:, 0] = np.where(np.arange(N) < 4, x[:, 0], 0.0)
    delta[:4, 1] = 0
    found, expected = (
        by_optimizer(framework, made._replace(x=x, delta=d))[0] for d in (delta, made.delta)
    )
    assert found[0, 1] == 0
    assert expected[0, 1] != 0
    others = [0, 2, 3]
    assert slice_error(found[:, others], expected[:, others]) <= GATE["float64"]


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1.0, 1e10, 1e20])
def test_the_first_step_of_adam(framework: str, scale: float) -> None:
    """As much as the plain one does to z, or a little less: ``sum v dW^2``."""
    made = layer(scale=scale)
    kernel, _ = by_optimizer(framework, made, adam=True)
    s = (made.x @ made.kernel + made.bias > 0).astype(float)
    trust = s.sum(0) / (s.sum(0) + 8)
    for o in range(O):
        own = np.average(made.x, axis=0, weights=s[:, o])
        mean = trust[o] * own + (1 - trust[o]) * made.x.mean(0)
        spread = np.average((made.x - mean) ** 2, axis=0, weights=s[:, o])
        v = trust[o] * spread + (1 - trust[o]) * ((made.x - mean) ** 2).mean(0)
        size = (v * kernel[:, o] ** 2).sum() / v.sum()
        assert 0.7 < size < 1 + VISIBLE
