"""A mask of the batch means the same in both packages, and says the same where it does not fit."""

import jax
import numpy as np
import pytest
import torch

import jaxnorm
import torchnorm
from jaxnorm import neuronwise_dense
from parity_tests.oracle import Knobs, moments, sample_weight, unit
from parity_tests.tolerances import GATE, VISIBLE, slice_error
from torchnorm.functional import neuronwise_linear

KEEP = np.arange(5) < np.array([5, 2, 0, 4])[:, None]


def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5, 3)) * [1, 5, 0.2] + [3, 0, 1]
    return x, rng.normal(size=(3, 2)), rng.normal(size=2), rng.normal(size=(4, 5, 2))


def gradients_in_jax(x, kernel, bias, g_z, mask, rule):
    def loss(kernel, bias):
        with jaxnorm.neuron_mask(mask):
            return (neuronwise_dense(x, kernel, bias, gate="silu", rule=rule) * g_z).sum()

    return jax.grad(loss, (0, 1))(kernel, bias)


def gradients_in_torch(x, kernel, bias, g_z, mask, rule):
    x, kernel, bias, g_z = (torch.tensor(a) for a in (x, kernel, bias, g_z))
    weight, bias = kernel.T.clone().requires_grad_(), bias.requires_grad_()
    with torchnorm.neuron_mask(mask):
        z = neuronwise_linear(x, weight, bias, gate="silu", rule=rule)
    (z * g_z).sum().backward()
    return weight.grad.T.numpy(), bias.grad.numpy()


@pytest.mark.parametrize("weighting", ["gate", "gate_squared", "uniform", "error"])
def test_both_are_the_oracle_on_what_counts(weighting):
    x, kernel, bias, g_z = arrays()
    knobs = Knobs(weighting=weighting)
    g_z = g_z * KEEP[..., None]
    rows, delta = x[KEEP], g_z[KEEP]
    s = sample_weight(rows @ kernel + bias, delta, "silu", weighting)
    at = moments(rows, s, knobs)
    columns = zip(at.mean.T, delta.T, strict=True)
    sigma = at.sigma / unit(at, knobs)
    expected = np.stack([(rows - mean).T @ d for mean, d in columns], 1) / sigma**2
    found = gradients_in_jax(x, kernel, bias, g_z, KEEP, jaxnorm.Rule(weighting=weighting))
    other = gradients_in_torch(x, kernel, bias, g_z, KEEP, torchnorm.Rule(weighting=weighting))
    assert slice_error(found[0], expected) <= GATE["float64"]
    assert slice_error(other[0], expected) <= GATE["float64"]
    assert slice_error(found[1], other[1], axes=()) <= GATE["float64"]
    without = gradients_in_jax(x, kernel, bias, g_z, None, jaxnorm.Rule(weighting=weighting))
    assert slice_error(without[0], expected) > VISIBLE


@pytest.mark.parametrize("mask", [KEEP.T, KEEP.astype(np.complex64), np.ones(3)], ids=str)
def test_errors_are_the_same(mask):
    x, kernel, bias, g_z = arrays()
    texts = []
    for package, gradients in ((jaxnorm, gradients_in_jax), (torchnorm, gradients_in_torch)):
        with pytest.raises((TypeError, ValueError), match="neuron_mask: got") as error:
            gradients(x, kernel, bias, g_z, mask, package.Rule())
        texts.append((error.type, str(error.value)))
    assert texts[0] == texts[1]
