"""Everything but the weight gradient is the framework layer's, to the last bit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from jax import lax

import jaxnorm
import torchnorm

PRECONDITIONED = jaxnorm.Rule(gradient="preconditioned")
PRECONDITIONED_TORCH = torchnorm.Rule(gradient="preconditioned")
LEADING = [(64,), (4, 16), (2, 2, 16)]
DTYPES = ["float32", "bfloat16", "float16", "float64"]
ARGUMENTS = [
    {},
    {"use_bias": False},
    {"precision": "highest"},
    {"kernel_init": nn.initializers.normal(), "bias_init": nn.initializers.ones_init()},
    {"dot_general": lambda *args, **kwargs: 2 * lax.dot_general(*args, **kwargs)},
]


def same(a, b):
    """Equal trees, bit for bit, dtypes included."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def data(leading, dtype):
    """Inputs with different scales, and a random cotangent."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*leading, 5)) * [1, 10, 0.1, 1, 1] + [0, 100, 1, 0, 0]
    return x.astype("float32"), rng.normal(size=(*leading, 7)).astype("float32"), dtype


@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_linen_forward_and_input_gradient(leading, dtype, compiled):
    x, cotangent, _ = data(leading, dtype)
    reference = nn.Dense(7, dtype=jnp.dtype(dtype))
    ours = jaxnorm.linen.Dense(7, dtype=jnp.dtype(dtype), gate="gelu", rule=PRECONDITIONED)
    variables = reference.init(jax.random.key(0), x)
    same(variables, ours.init(jax.random.key(0), x))
    run = jax.jit if compiled else lambda f: f

    def both(layer, x):
        z, pull = jax.vjp(lambda x: layer.apply(variables, x), x)
        return z, pull(cotangent.astype(z.dtype))

    same(run(lambda x: both(ours, x))(x), run(lambda x: both(reference, x))(x))


@pytest.mark.parametrize(
    "arguments", ARGUMENTS, ids=lambda arguments: "+".join(arguments) or "none"
)
def test_linen_takes_every_argument_and_plain_is_the_framework(arguments):
    x, cotangent, _ = data((64,), "float32")
    ours = jaxnorm.linen.Dense(7, gate="relu", rule=jaxnorm.PLAIN, **arguments)
    reference = nn.Dense(7, **arguments)
    variables = reference.init(jax.random.key(1), x)
    same(variables, ours.init(jax.random.key(1), x))

    def loss(layer):
        return jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x) * cotangent)))(variables)

    same(loss(ours), loss(reference))
    with_rule = loss(ours.clone(rule=PRECONDITIONED))
    assert not np.array_equal(with_rule["params"]["kernel"], loss(reference)["params"]["kernel"])


def test_linen_class_has_every_field_of_the_framework():
    assert set(nn.Dense.__dataclass_fields__) <= set(jaxnorm.linen.Dense.__dataclass_fields__)
    assert issubclass(jaxnorm.linen.Dense, nn.Dense)
    assert jaxnorm.linen.Dense.__name__ == "Dense"


@pytest.mark.parametrize(
    "arguments", ARGUMENTS, ids=lambda arguments: "+".join(arguments) or "none"
)
def test_nnx_is_linen_and_the_framework(arguments):
    if "dot_general" in arguments:
        arguments = {"preferred_element_type": jnp.float32}
    x, cotangent, _ = data((64,), "float32")
    kwargs = {"gate": "relu", "rule": PRECONDITIONED}
    ours = jaxnorm.nnx.Linear(5, 7, rngs=nnx.Rngs(0), **kwargs, **arguments)
    reference = nnx.Linear(5, 7, rngs=nnx.Rngs(0), **arguments)
    same(nnx.to_pure_dict(nnx.state(ours)), nnx.to_pure_dict(nnx.state(reference)))

    def both(layer):
        z, pull = jax.vjp(layer, x)
        return z, pull(cotangent)

    same(both(ours), both(reference))

    @nnx.grad
    def gradient(layer):
        return jnp.sum(layer(x) * cotangent)

    in_linen = {k: v for k, v in arguments.items() if k != "preferred_element_type"}
    linen = jaxnorm.linen.Dense(7, **kwargs, **in_linen)
    params = nnx.to_pure_dict(nnx.state(ours, nnx.Param))
    expected = jax.grad(lambda p: jnp.sum(linen.apply({"params": p}, x) * cotangent))(params)
    same(nnx.to_pure_dict(gradient(ours)), expected)
    ours.rule = jaxnorm.PLAIN
    same(nnx.to_pure_dict(gradient(ours)), nnx.to_pure_dict(gradient(reference)))


def test_nnx_lives_with_its_framework():
    layer = jaxnorm.nnx.Linear(5, 7, gate="relu", rule=PRECONDITIONED, rngs=nnx.Rngs(0))
    x, cotangent, _ = data((64,), "float32")
    shape = nnx.eval_shape(lambda: jaxnorm.nnx.Linear(5, 7, gate="relu", rngs=nnx.Rngs(0)))
    assert shape.kernel.shape == (5, 7)
    optimizer = nnx.Optimizer(layer, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.sum(m(x) * cotangent))(layer)
        optimizer.update(layer, grads)
        return loss

    before = np.asarray(layer.kernel[...])
    first, second = step(layer, optimizer), step(layer, optimizer)
    assert second < first
    assert not np.array_equal(before, layer.kernel[...])
    same(nnx.merge(*nnx.split(layer))(x), layer(x))


@pytest.mark.parametrize("leading", [*LEADING, ()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_torch_forward_and_input_gradient(leading, dtype, bias):
    x, cotangent, _ = data(leading, dtype)
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    ours = torchnorm.Linear(5, 7, bias, dtype=kind, gate="gelu", rule=PRECONDITIONED_TORCH)
    torch.manual_seed(0)
    reference = torch.nn.Linear(5, 7, bias, dtype=kind)
    assert ours.state_dict().keys() == reference.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in reference.state_dict().items())
    ours.load_state_dict(reference.state_dict(), strict=True)
    reference.load_state_dict(ours.state_dict(), strict=True)
    if not leading:
        ours.rule = torchnorm.PLAIN  # a single row has no statistics
    results = []
    for layer in (ours, reference):
        inputs = torch.tensor(x, dtype=kind, requires_grad=True)
        z = layer(inputs)
        z.backward(torch.tensor(cotangent, dtype=kind))
        results.append((z, inputs.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert ours.weight.grad is not None
    assert ours.weight.grad.dtype == kind
    ours.zero_grad()
    ours.rule = torchnorm.PLAIN
    ours(torch.tensor(x, dtype=kind)).backward(torch.tensor(cotangent, dtype=kind))
    assert torch.equal(ours.weight.grad, reference.weight.grad)


def test_torch_non_contiguous_inputs():
    x = torch.randn(5, 64, dtype=torch.float64).T
    cotangent = torch.randn(7, 64, dtype=torch.float64).T
    kwargs = {"gate": "relu", "rule": PRECONDITIONED_TORCH}
    layer = torchnorm.Linear(5, 7, dtype=torch.float64, **kwargs)
    grads = []
    for inputs in (x, x.contiguous()):
        layer.zero_grad()
        layer(inputs).backward(cotangent)
        assert layer.weight.grad is not None
        grads.append(layer.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_torch_repr_shows_what_is_not_default():
    layer = torchnorm.Linear(2, 3, gate=None, rule=torchnorm.Rule(scale="layer"))
    assert repr(layer).endswith("gate=None, rule=Rule(scale='layer'))")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_torch_linear_on_what_is_not_contiguous(bias, frozen):
    """PyTorch folds the leading axes of such an x only where the weight needs a gradient."""
    plain = torch.nn.Linear(5, 7, bias)
    ours = torchnorm.Linear(5, 7, bias, gate="relu", rule=PRECONDITIONED_TORCH)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(5, 33, 4).permute(2, 1, 0)
    for layer in (plain, ours):
        layer.weight.requires_grad_(not frozen)
    assert torch.equal(plain(x), ours(x))
