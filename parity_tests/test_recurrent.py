"""A recurrent layer of PyTorch and the same equations in JAX have the same statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxnorm
import torchnorm
from jaxnorm.statistics import merging
from parity_tests.tolerances import GATE, slice_error
from torchnorm.statistics import merging as merging_in_torch


def halves(p, x, h):
    """What the input and the state bring."""
    given = x @ p["weight_ih_l0"].T + p["bias_ih_l0"][None]
    return given, h @ p["weight_hh_l0"].T + p["bias_hh_l0"][None]


def lstm(p, xs):
    """The equations of `torch.nn.LSTM`."""

    def step(state, x):
        h, c = state
        given, recurrent = halves(p, x, h)
        i, f, g, o = jnp.split(given + recurrent, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return jax.lax.scan(step, (jnp.zeros((xs.shape[1], 4)),) * 2, xs)[1]


def gru(p, xs):
    """The equations of `torch.nn.GRU`."""

    def step(h, x):
        given, recurrent = (jnp.split(each, 3, -1) for each in halves(p, x, h))
        r, z = (jax.nn.sigmoid(given[n] + recurrent[n]) for n in (0, 1))
        n = jnp.tanh(given[2] + r * recurrent[2])
        h = (1 - z) * n + z * h
        return h, h

    return jax.lax.scan(step, jnp.zeros((xs.shape[1], 4)), xs)[1]


@pytest.mark.parametrize(("kind", "fn"), [("LSTM", lstm), ("GRU", gru)])
def test_recurrent_layers_record_the_same(kind, fn):
    xs = np.random.default_rng(0).normal(size=(6, 5, 3)) + 1
    layer = getattr(torchnorm.recurrent, kind)(3, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    torchnorm.optim.in_neuron_coordinates(optimizer, layer)
    out = layer(torch.tensor(xs))[0]
    out.square().sum().backward()

    params = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    f = jaxnorm.neuronwise(fn)
    stats = jaxnorm.init_statistics(f, params, xs)
    batch = jax.grad(lambda s: jnp.sum(f(params, xs, neuron_stats=s) ** 2))(stats)
    np.testing.assert_allclose(fn(params, xs), out.detach().numpy(), rtol=1e-12, atol=1e-14)
    for half in ("ih", "hh"):
        mine = merging.moments(batch[f"weight_{half}_l0"])
        theirs = merging_in_torch.moments(getattr(layer, f"{half}_l0").neuron_stats.gathered())
        for name in ("mean", "sigma"):
            expected = getattr(theirs, name).numpy()
            assert slice_error(np.asarray(getattr(mine, name)).T, expected) <= GATE["float64"]
