"""Noise in the weights: all packages against NumPy, and the normalization that comes of it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxnorm
import torchnorm
from jaxnorm.normalizers.multiplicative_noise import (
    draw_multiplicative_noise,
    noisy_dense,
    positive_probability,
)
from parity_tests.oracle.complex_step import vjp
from parity_tests.oracle.normalizers import multiplicative_noise as oracle
from parity_tests.tolerances import SAME_STEP, VISIBLE
from torchnorm import normalizers as in_torch

RNG = np.random.default_rng(0)
ARRAYS = {
    "x": RNG.normal(size=(6, 5)),
    "kernel": RNG.normal(size=(5, 3)),
    "scale": RNG.uniform(0.5, 2.0, 3),
    "bias": RNG.normal(size=3),
}
NOISE, DELTA = RNG.binomial(1, 0.5, (5, 3)) * 2.0, RNG.normal(size=(6, 3))
KNOBS = [
    {},
    {"threshold": True},
    {"use_scale": False, "use_bias": False, "distribution": "normal"},
]


def _linen(knobs: dict[str, Any], arrays: dict[str, Any]) -> Any:
    layer = jaxnorm.linen.normalizers.DropConnect(3, **knobs)
    params = {name: value for name, value in arrays.items() if name != "x"}
    return layer.apply({"params": params}, arrays["x"], noise=jnp.asarray(NOISE))


def _nnx(knobs: dict[str, Any], arrays: dict[str, Any]) -> Any:
    layer = jaxnorm.nnx.normalizers.DropConnect(5, 3, **knobs, rngs=nnx.Rngs(0))
    for name, value in arrays.items():
        if name != "x":
            getattr(layer, name).set_value(value)
    return layer(arrays["x"], noise=jnp.asarray(NOISE))


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_drop_connect_is_what_numpy_computes(knobs):
    left_out = [name for name in ("scale", "bias") if not knobs.get(f"use_{name}", True)]
    arrays = {name: value for name, value in ARRAYS.items() if name not in left_out}

    def forward(given: Any) -> Any:
        params = {name: value for name, value in given.items() if name != "x"}
        return oracle.drop_connect(given["x"], params, {}, noise=NOISE, **knobs)[0]

    expected = {"y": forward(arrays).real, **vjp(forward, arrays, DELTA)}
    found = {}
    for name, apply in (("linen", _linen), ("nnx", _nnx)):
        run = jax.jit(lambda arrays, apply=apply: jax.vjp(lambda a: apply(knobs, a), arrays))
        y, pull = run({key: jnp.asarray(value) for key, value in arrays.items()})
        found[name] = {"y": y, **pull(jnp.asarray(DELTA))[0]}
    found["torch"] = _torch(knobs, arrays)
    for name, results in found.items():
        assert results.keys() == expected.keys()
        for quantity, value in expected.items():
            error = np.abs(np.asarray(results[quantity]) - value).max()
            assert error <= SAME_STEP, (name, quantity, error)


def _torch(knobs: dict[str, Any], arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    others = {name: value for name, value in knobs.items() if not name.startswith("use_")}
    uses = {"scale": "scale" in arrays, "bias": "bias" in arrays}
    layer = torchnorm.normalizers.DropConnect(5, 3, **others, **uses, dtype=torch.float64)
    tensors = {name: torch.tensor(value) for name, value in arrays.items()}
    x = tensors.pop("x").requires_grad_()
    layer.load_state_dict({"weight": tensors.pop("kernel").T, **tensors})
    y = layer(x, noise=torch.tensor(NOISE.T))
    y.backward(torch.tensor(DELTA))
    grads = {name: each.grad.numpy() for name, each in layer.named_parameters()}
    kernel = grads.pop("weight").T
    return {"y": y.detach().numpy(), "x": x.grad.numpy(), "kernel": kernel, **grads}


def test_noise_on_activations_is_a_product():
    x, noise, delta = ARRAYS["x"], RNG.normal(1, 1, (6, 5)), RNG.normal(size=(6, 5))
    layers = (
        lambda x: jaxnorm.linen.normalizers.MultiplicativeNoise().apply({}, x, noise=noise),
        lambda x: jaxnorm.nnx.normalizers.MultiplicativeNoise()(x, noise=noise),
    )
    for layer in layers:
        y, pull = jax.vjp(layer, jnp.asarray(x))
        assert (np.asarray(y) == x * noise).all()
        assert (np.asarray(pull(jnp.asarray(delta))[0]) == delta * noise).all()
    x = torch.tensor(x, requires_grad=True)
    y = torchnorm.normalizers.MultiplicativeNoise()(x, noise=torch.tensor(noise))
    y.backward(torch.tensor(delta))
    assert (y.detach().numpy() == ARRAYS["x"] * noise).all()
    assert (x.grad.numpy() == delta * noise).all()


@pytest.mark.parametrize("distribution", ["normal", "bernoulli"])
@pytest.mark.parametrize("package", ["jax", "torch"])
def test_what_a_threshold_sees_does_not_know_how_long_the_weights_are(package, distribution):
    """Drawn: the share of positive z is P, for W as for 1000 W."""
    draws, inputs, rate = 4000, 64, 0.3
    x, kernel = RNG.normal(size=(1, inputs)), RNG.normal(size=(inputs, 2))
    scale = np.array([0.4, -0.8])
    args = (1 / math.sqrt(draws), rate)
    for length in (1.0, 1000.0):
        if package == "jax":
            w = jnp.asarray(length * kernel)

            def share(noise: Any, w: Any = w) -> Any:
                return noisy_dense(jnp.asarray(x), w, noise, jnp.asarray(scale), rate=rate) > 0

            noise = draw_multiplicative_noise(
                jax.random.key(0), (draws, *kernel.shape), rate, distribution, jnp.float64
            )
            positive = np.asarray(jax.vmap(share)(noise)).mean(0)
            p = np.asarray(positive_probability(jnp.asarray(x), w, jnp.asarray(scale), rate=rate))
        else:
            w, s = torch.tensor(length * kernel.T), torch.tensor(scale)
            noise = in_torch.draw_multiplicative_noise(
                torch.Generator().manual_seed(0),
                (draws, *w.shape),
                rate,
                distribution,
                dtype=torch.float64,
            )
            z = torch.stack(
                [in_torch.noisy_linear(torch.tensor(x), w, n, s, rate=rate) for n in noise]
            )
            positive = (z > 0).double().mean(0).numpy()
            p = in_torch.positive_probability(torch.tensor(x), w, s, rate=rate).numpy()
        assert (np.abs(p - 0.5) > 0.01).any()
        # Five deviations of a share, and what 64 inputs lack of the central limit.
        lacking = 0.0 if distribution == "normal" else 0.03
        assert np.abs(positive - p).max() <= 2.5 * args[0] + lacking


def test_it_is_weight_normalization_on_signs():
    """P is that of W / |W|; its gradient is at a right angle to W; x's length does not matter."""
    x, kernel, scale = np.sign(ARRAYS["x"]), ARRAYS["kernel"], ARRAYS["scale"]
    normalized = scale * (x @ (kernel / np.linalg.norm(kernel, axis=0)))
    expected = (1 + np.vectorize(math.erf)(normalized)) / 2
    arrays = [jnp.asarray(each) for each in (x, kernel, scale)]
    p, pull = jax.vjp(lambda w: positive_probability(arrays[0], w, arrays[2]), arrays[1])
    g = np.asarray(pull(jnp.asarray(DELTA))[0])
    weight = torch.tensor(kernel.T, requires_grad=True)
    p_torch = in_torch.positive_probability(torch.tensor(x), weight, torch.tensor(scale))
    p_torch.backward(torch.tensor(DELTA))
    for found, gradient in ((p, g), (p_torch.detach(), weight.grad.numpy().T)):
        assert np.abs(np.asarray(found) - expected).max() <= SAME_STEP
        assert np.abs((gradient * kernel).sum(0)).max() <= SAME_STEP
        assert np.abs(gradient).max() > VISIBLE
    # This can fail: a layer without noise, z itself, has a gradient along W.
    plain = (x.T @ DELTA * kernel).sum(0)
    assert np.abs(plain).min() > VISIBLE


def test_the_drawn_noise_is_always_on():
    x = np.ones((1, 64))
    layer = torchnorm.normalizers.MultiplicativeNoise().eval()
    assert len(set(layer(torch.tensor(x))[0].tolist())) == 2
    flax = jaxnorm.nnx.normalizers.MultiplicativeNoise(rngs=nnx.Rngs(0))
    flax.eval()
    assert len(set(np.asarray(flax(jnp.asarray(x)))[0].tolist())) == 2


@pytest.mark.parametrize(
    "args",
    [
        {"rate": 0.0},
        {"rate": -1.0},
        {"rate": "often"},
        {"x": np.ones((2, 7))},
        {"x": np.ones((2, 5), np.int32)},
        {"noise": np.ones((2, 2))},
    ],
    ids=str,
)
def test_bad_input_is_refused_in_the_same_words(args):
    square = {"x": np.ones((2, 5)), "kernel": np.ones((5, 5)), "noise": np.ones((5, 5))}
    knobs = {"rate": args.get("rate", 0.5)}
    arrays = {**square, **{k: v for k, v in args.items() if k != "rate"}}
    with pytest.raises((TypeError, ValueError)) as error:
        noisy_dense(*map(jnp.asarray, arrays.values()), jnp.ones(5), **knobs)
    with pytest.raises(error.type) as other:
        in_torch.noisy_linear(*map(torch.tensor, arrays.values()), torch.ones(5), **knobs)
    assert str(error.value) == str(other.value)
