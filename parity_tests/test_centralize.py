"""Gradient centralization against the reference's formula, in the layout of every framework."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx

import jaxnorm
import torchnorm
from parity_tests import steps
from parity_tests.tolerances import SAME_STEP, VISIBLE


def reference(weight: np.ndarray) -> np.ndarray:
    """As published, for a gradient [O, I, *window]: every filter without its mean."""
    return np.stack([g - g.mean() for g in weight]) if weight.ndim > 1 else weight


def random(*shape: int) -> np.ndarray:
    """A gradient."""
    return np.random.default_rng(shape).standard_normal(shape) + 0.5


def centered(tx: Any, grads: Any) -> Any:
    """The updates, compiled, in NumPy."""
    grads = jax.tree.map(jnp.asarray, grads)
    return jax.tree.map(np.asarray, jax.jit(lambda g: tx.update(g, tx.init(g))[0])(grads))


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max())


#: Flax's layout -> PyTorch's, [O, I, *window].
LAYOUTS = {(7, 5): (1, 0), (3, 7, 5): (2, 1, 0), (3, 2, 7, 5): (3, 2, 0, 1)}


@pytest.mark.parametrize(("shape", "axes"), LAYOUTS.items(), ids=str)
def test_dense_and_convolution_are_the_reference(shape, axes):
    kernel, bias = random(*shape), random(shape[-1])
    actual = centered(jaxnorm.centralize(), {"Conv_0": {"kernel": kernel, "bias": bias}})["Conv_0"]
    expected = reference(kernel.transpose(axes))
    assert distance(actual["kernel"].transpose(axes), expected) <= SAME_STEP
    assert (actual["bias"] == bias).all()
    weight = _stepped(kernel.transpose(axes))
    assert distance(weight, expected) <= SAME_STEP


@pytest.mark.parametrize(("shape", "axes"), LAYOUTS.items(), ids=str)
def test_optax_centers_over_the_neurons_of_flax_kernels(shape, axes):
    """Why this is here: right in PyTorch's layout, another thing in Flax's."""
    kernel = random(*shape)
    expected = reference(kernel.transpose(axes))
    assert distance(centered(optax.centralize(), kernel.transpose(axes)), expected) <= SAME_STEP
    theirs = centered(optax.centralize(), kernel).transpose(axes)
    assert distance(theirs, expected) > VISIBLE


def _stepped(grad: np.ndarray) -> np.ndarray:
    """What the optimizer of one weight sees."""
    weight = torch.nn.Parameter(torch.zeros(grad.shape, dtype=torch.float64))
    optimizer = torchnorm.optim.centralize(torch.optim.SGD([weight], 1.0))
    weight.grad = torch.tensor(grad)
    optimizer.step()
    return -weight.detach().numpy()


class _Attention(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.MultiHeadDotProductAttention(num_heads=2, name="a")(x)


HEADS = {f"*/{name}/kernel": 0 for name in ("query", "key", "value")}


def test_heads_have_several_output_axes():
    params = _Attention().init(jax.random.key(0), jnp.ones((2, 3, 4), np.float32))["params"]
    grads = jax.tree.map(lambda p: random(*p.shape), params)
    actual = centered(jaxnorm.centralize(HEADS), grads)["a"]
    for name in ("query", "key", "value"):
        kernel = grads["a"][name]["kernel"]  # [I, heads, O]
        flat = reference(kernel.reshape(len(kernel), -1).T).T.reshape(kernel.shape)
        assert distance(actual[name]["kernel"], flat) <= SAME_STEP
        assert distance(centered(jaxnorm.centralize(), grads)["a"][name]["kernel"], flat) > VISIBLE
    kernel = grads["a"]["out"]["kernel"]  # [heads, I, O]
    flat = reference(kernel.reshape(-1, kernel.shape[-1]).T).T.reshape(kernel.shape)
    assert distance(actual["out"]["kernel"], flat) <= SAME_STEP


def test_what_is_left_alone():
    """Leaves of other names, one axis, masked ones; patterns count in their order."""
    grads = {
        "Embed_0": {"embedding": random(6, 3)},
        "Dense_0": {"kernel": random(4, 3), "bias": random(3)},
        "Dense_1": {"kernel": random(4, 3)},
        "odd": {"kernel": random(3)},
    }
    tx = jaxnorm.centralize({"Dense_0/*": (), "*/kernel": -2, "*/embedding": 1})
    with pytest.raises(ValueError, match=r"axes\['\*/kernel'\]: got \(-2,\) for 'odd/kernel'"):
        tx.init(grads)
    del grads["odd"]
    actual = centered(tx, grads)
    assert (actual["Dense_0"]["kernel"] == grads["Dense_0"]["kernel"]).all()
    assert distance(actual["Dense_1"]["kernel"].mean(0), np.zeros(3)) <= SAME_STEP
    assert distance(actual["Embed_0"]["embedding"].mean(1), np.zeros(6)) <= SAME_STEP
    default = centered(jaxnorm.centralize(), grads)
    assert (default["Embed_0"]["embedding"] == grads["Embed_0"]["embedding"]).all()
    only = optax.masked(jaxnorm.centralize(), {**dict.fromkeys(grads, False), "Dense_1": True})
    assert (centered(only, grads)["Dense_0"]["kernel"] == grads["Dense_0"]["kernel"]).all()
    assert distance(centered(only, grads)["Dense_1"]["kernel"].mean(0), np.zeros(3)) <= SAME_STEP


def test_nnx_and_low_precision():
    model = nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, optax.chain(jaxnorm.centralize(), optax.sgd(1.0)), wrt=nnx.Param
    )
    before = np.asarray(model.kernel[...], np.float64)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.eye(3, dtype=jnp.bfloat16)[:2])))(model)
    optimizer.update(model, grads)
    step = before - np.asarray(model.kernel[...], np.float64)
    expected = reference(np.array([[1.0, 1, 0], [1, 1, 0]])).T
    np.testing.assert_allclose(step, expected, atol=2e-2)


def test_training_in_lock_step():
    """Before SGD with momentum, on models that nobody has converted."""
    x, y = steps.batches(1)[0]
    model = steps.torch_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    plain = steps.in_plain_torch(model, torchnorm.optim.centralize(optimizer, model))
    network = steps.Network(lambda group, memory: (reference(group.weight), group.bias, None))
    tx = optax.chain(jaxnorm.centralize(), optax.sgd(0.01, momentum=0.9))
    tx = optax.with_extra_args_support(tx)
    flax = steps.in_linen(tx, jaxnorm.Rule())
    for _ in range(4):
        network.train(x, y, 0.01, 0.9)
        plain.train(x, y)
        flax.train(x, y)
        assert steps.distance(flax.layers(), network.layers) <= SAME_STEP
        assert steps.distance(plain.layers(), network.layers) <= SAME_STEP


@pytest.mark.parametrize("groups", [1, 2])
def test_torch_transposed_convolutions(groups):
    """[I, O / groups, *window]: by its first axis only if no one knows the layer."""
    layer = torch.nn.ConvTranspose1d(4, 6, 3, groups=groups, dtype=torch.float64)
    embedding = torch.nn.Embedding(5, 4, dtype=torch.float64)
    model = torch.nn.ModuleDict({"e": embedding, "l": layer})
    grad = random(4, 6 // groups, 3)
    for known in (model, None):
        optimizer = torchnorm.optim.centralize(torch.optim.SGD(model.parameters(), 0.0), known)
        layer.weight.grad = torch.tensor(grad)
        embedding.weight.grad = torch.tensor(random(5, 4))
        optimizer.step()
        by_group = grad.reshape(groups, 4 // groups, 6 // groups, 3)
        expected = by_group - by_group.mean((1, 3), keepdims=True)
        if known is None:
            expected = reference(grad)
            assert distance(embedding.weight.grad.numpy(), reference(random(5, 4))) <= SAME_STEP
        else:
            assert (embedding.weight.grad.numpy() == random(5, 4)).all()
        assert distance(layer.weight.grad.numpy(), expected.reshape(grad.shape)) <= SAME_STEP


def test_torch_closures_and_sparse_gradients():
    model = torch.nn.Embedding(5, 4, sparse=True)
    optimizer = torchnorm.optim.centralize(torch.optim.SGD(model.parameters(), 1.0))
    before = model.weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = model(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (before - model.weight)[1:3].allclose(torch.ones(2, 4))
    dense = torch.nn.Linear(3, 2)
    start = dense.weight.detach().clone()
    optimizer = torchnorm.optim.centralize(torch.optim.SGD(dense.parameters(), 1.0))

    def other():
        optimizer.zero_grad()
        loss = dense(torch.tensor([[1.0, 2.0, 6.0]])).sum()
        loss.backward()
        return loss

    optimizer.step(other)
    expected = torch.tensor([[-2.0, -1.0, 3.0]]).expand(2, 3)
    torch.testing.assert_close(start - dense.weight.detach(), expected)


def test_errors():
    grads = {"Dense_0": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="axes: got the pattern 'x', which matches no parameter"):
        jaxnorm.centralize({"x": 0}).init(grads)
    with pytest.raises(TypeError, match="axes: got 0, expected a dict"):
        jaxnorm.centralize(0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"axes\['a'\]: got 'b', expected an int or several"):
        jaxnorm.centralize({"a": "b"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="optimizer: got int"):
        torchnorm.optim.centralize(3)  # type: ignore[arg-type]
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="model: got str"):
        torchnorm.optim.centralize(torch.optim.SGD(layer.parameters(), 1.0), "x")  # type: ignore[arg-type]
