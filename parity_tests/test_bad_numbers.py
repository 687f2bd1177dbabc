"""NaN, Inf and overflow spread exactly as in the plain layer; dead neurons and zeros are no NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxnorm
import torchnorm
from torchnorm.functional import neuronwise_linear

N, I, O = 24, 5, 4  # noqa: E741
RULES = [
    {},
    {"weighting": "error"},
    {"weighting": "uniform"},
    {"scale": "layer"},
    {"scale": "none"},
    {"gradient": "standardized"},
]


def gradients(framework, x, kernel, bias, g_z, gate, rule):
    """(g_W, g_b, g_x) of one framework."""
    if framework == "jax":
        layer = jaxnorm.neuronwise_dense
        arrays = [None if a is None else jnp.asarray(a) for a in (kernel, bias, x)]
        run = lambda k, b, x: layer(x, k, b, gate=gate, rule=jaxnorm.Rule(**rule))  # noqa: E731
        out = jax.vjp(run, *arrays)[1](jnp.asarray(g_z))
        return [np.asarray(a) for a in out if a is not None]
    leaves = [
        None if a is None else torch.tensor(a.T.copy(), requires_grad=True) for a in (kernel, bias)
    ]
    x = torch.tensor(x, requires_grad=True)
    z = neuronwise_linear(x, leaves[0], leaves[1], gate=gate, rule=torchnorm.Rule(**rule))
    z.backward(torch.tensor(g_z))
    return [
        a.grad.numpy().T if a is not x else a.grad.numpy() for a in (*leaves, x) if a is not None
    ]


def batch():
    """A batch that is finite everywhere."""
    rng = np.random.default_rng(3)
    arrays = (
        rng.normal(size=(N, I)),
        rng.normal(size=(I, O)),
        rng.normal(size=O),
        rng.normal(size=(N, O)),
    )
    return [a.astype("float32") for a in arrays]


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("where", ["x", "x, masked loss", "kernel", "bias", "g_z"])
def test_what_is_finite_in_the_plain_layer_stays_finite(framework, rule, where):
    for value, gate, with_bias in (
        (np.nan, "relu", True),
        (np.nan, "gelu_erf", True),
        (np.nan, "gelu_erf", False),
        (np.inf, "gelu_erf", True),
        (-np.inf, "relu", False),
        (1e25, "relu", True),
        (1e25, "gelu_erf", False),
    ):
        if value == 1e25 and rule.get("scale") == "none":
            continue  # there the right answer, of order x^2, is itself beyond float32
        x, kernel, b, g_z = batch()
        if where.startswith("x"):
            x[3, 2] = value
            if "masked" in where:
                g_z[3] = 0
        elif where == "kernel":
            kernel[2, 1] = value
        elif where == "bias":
            b[1] = value
        else:
            g_z[3, 1] = value
        b = b if with_bias else None
        ours = gradients(framework, x, kernel, b, g_z, gate, rule)
        plain = gradients(framework, x, kernel, b, g_z, gate, {"gradient": "plain"})
        assert not all(np.isfinite(p).all() for p in plain) or value == 1e25 or where == "bias"
        for a, p in zip(ours, plain, strict=True):
            np.testing.assert_array_equal(np.isfinite(a) | ~np.isfinite(p), True)


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("rule", [{}, {"damping": 0.0, "epsilon": 0.0, "shrinkage": 0.0}], ids=str)
def test_dead_neurons_and_constant_features(framework, rule):
    x, kernel, bias, g_z = batch()
    bias[0] = -1e4  # never active
    bias[1] = -np.sort(x @ kernel[:, 1])[-1] + 1e-3  # active once
    x[:, 0], x[:, 1] = 0.0, 7.0
    got = gradients(framework, x, kernel, bias, g_z, "relu", rule)
    assert all(np.isfinite(a).all() for a in got)
    g_w, g_b, _ = got
    # A zero feature, and a constant one, which the bias already carries, have nothing to learn.
    assert np.abs(g_w[:2]).max() < 1e-3 * np.abs(g_w[2:]).max()
    assert np.any(g_b != 0)


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_weights_in_any_unit(framework):
    # A saturated sigmoid's slopes, and vanishing or scaled-up gradients, square to 0 or infinity.
    x, kernel, bias, g_z = batch()
    reference = gradients(framework, x, kernel, bias, g_z, "relu", {"weighting": "error"})
    for unit in (np.float32(2.0**-80), np.float32(2.0**80)):
        scaled = gradients(framework, x, kernel, bias, unit * g_z, "relu", {"weighting": "error"})
        for a, r in zip(scaled, reference, strict=True):
            np.testing.assert_array_equal(a / unit, r)
    steep = gradients(framework, x, kernel, bias, g_z, "sigmoid", {})
    bias_far = bias + np.float32(60.0)
    saturated = gradients(framework, x, 1e-3 * kernel, bias_far, g_z, "sigmoid", {})
    assert all(np.isfinite(a).all() for a in (*steep, *saturated))
