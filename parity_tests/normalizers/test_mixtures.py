"""Mixture, mode and stochastic normalization: what they are, and what they refuse."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxnorm
import torchnorm
from jaxnorm import normalizers as in_jax
from parity_tests.tolerances import SAME_STEP, VISIBLE
from torchnorm import normalizers as in_torch
from torchnorm.normalizers import samples

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3, 4)) * np.array([0.3, 1.0, 3.0, 10.0]) + RNG.normal(size=4) * 5
EPSILON = 1e-3
STANDARD = (X - X.mean((0, 1))) / np.sqrt(X.var((0, 1)) + EPSILON)


def _torch(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x).movedim(-1, 1)


def _back(y: torch.Tensor) -> np.ndarray:
    return y.detach().movedim(1, -1).numpy()


def _wide(state: Any) -> Any:
    """A state of JAX in float64."""
    return type(state)(*(each.astype(jnp.float64) for each in state))


def test_one_component_and_one_mode_are_batch_norm():
    """The frameworks' layers, without a way over our formulas."""
    flax = nn.BatchNorm(use_running_average=False, epsilon=EPSILON, use_fast_variance=False)
    x = jnp.asarray(X)
    expected = flax.init_with_output(jax.random.key(0), x)[0]
    assert np.abs(np.asarray(expected) - STANDARD).max() <= 1e-5  # its statistics are float32
    state = _wide(in_jax.initial_mixture(1, 4))
    y, _ = in_jax.mixture_norm(x, state, epsilon=EPSILON)
    assert np.abs(np.asarray(y) - STANDARD).max() <= SAME_STEP
    y, new = in_jax.mode_norm(
        x, _wide(in_jax.initial_modes(1, 4)), jnp.ones((4, 1)), jnp.ones(1), epsilon=EPSILON
    )
    assert np.abs(np.asarray(y) - STANDARD).max() <= SAME_STEP
    # As published: from running averages of x and x^2, from 0 and 1.
    second = 0.9 * 1 + 0.1 * (X**2).mean((0, 1))
    assert np.abs(new.var[0] - (second - (0.1 * X.mean((0, 1))) ** 2)).max() <= 1e-11
    theirs = torch.nn.BatchNorm1d(4, EPSILON).double()(_torch(X))
    for name in ("MixtureNorm", "ModeNorm"):
        one = {"MixtureNorm": "components", "ModeNorm": "modes"}[name]
        layer = getattr(torchnorm.normalizers, name)(4, EPSILON, **{one: 1}).double()
        assert (layer(_torch(X)) - theirs).abs().max() <= SAME_STEP


def test_a_large_mean_costs_nothing():
    """A gate whose columns sum to zero does not see it."""
    gate = RNG.normal(size=(4, 2))
    gate = gate - gate.mean(0)
    outputs = {}
    for mean in (0.0, 1e4):
        x = jnp.asarray(X + mean)
        state = _wide(in_jax.initial_mixture(2, 4))
        modes = _wide(in_jax.initial_modes(2, 4))
        outputs[mean] = [
            np.asarray(in_jax.mixture_norm(x, state)[0]),
            np.asarray(in_jax.mode_norm(x, modes, jnp.asarray(gate), jnp.zeros(2))[0]),
        ]
        state = in_torch.initial_mixture(2, 4, dtype=torch.float64)
        modes = in_torch.initial_modes(2, 4, dtype=torch.float64)
        x, weight = _torch(X + mean), torch.tensor(gate.T)
        outputs[mean] += [
            _back(in_torch.mixture_norm(x, state)[0]),
            _back(in_torch.mode_norm(x, modes, weight, torch.zeros(2))[0]),
        ]
    for near, far in zip(*outputs.values(), strict=True):
        assert np.abs(near - far).max() <= 1e-10


@pytest.mark.parametrize("package", ["jax", "torch"])
def test_stochastic_norm_with_the_noise_of_the_batch_is_batch_norm(package):
    """U and V are what BatchNorm does: with those of this batch it is BatchNorm, exactly."""
    mean, var = RNG.normal(size=4), RNG.uniform(0.5, 2, 4)
    root = np.sqrt(X.var((0, 1)) + EPSILON)
    u = np.sqrt(var + EPSILON) / root
    v = (mean - X.mean((0, 1))) / np.sqrt(var + EPSILON)
    noise = np.stack([u, v])
    if package == "jax":
        state = in_jax.Moments(jnp.asarray(mean), jnp.asarray(var))
        y = in_jax.stochastic_norm(
            jnp.asarray(X), state, noise=jnp.asarray(noise), epsilon=EPSILON
        )[0]
    else:
        state = in_torch.Moments(torch.tensor(mean), torch.tensor(var))
        y = in_torch.stochastic_norm(_torch(X), state, noise=torch.tensor(noise), eps=EPSILON)[0]
        y = _back(y)
    assert np.abs(np.asarray(y) - STANDARD).max() <= SAME_STEP * 10


@pytest.mark.parametrize("package", ["jax", "torch"])
def test_the_drawn_noise_is_that_of_batches(package):
    """The moments of U and V over many channels are those that batches of normal values have."""
    count, channels = 6, 20_000
    batches = RNG.normal(size=(count, channels))
    u, v = 1 / batches.std(0), -batches.mean(0)
    if package == "jax":
        drawn = in_jax.draw_batch_noise(jax.random.key(0), count, channels, jnp.float64)
    else:
        generator = torch.Generator().manual_seed(0)
        drawn = in_torch.draw_batch_noise(generator, count, channels, dtype=torch.float64)
    for found, expected in zip(np.asarray(drawn), (u, v), strict=True):
        for q in (0.1, 0.5, 0.9):
            assert abs(np.quantile(found, q) - np.quantile(expected, q)) < 0.02
    assert abs(np.corrcoef(np.asarray(drawn))[0, 1]) < 0.03


def test_em_finds_what_was_mixed_and_each_part_is_normalized():
    """Two clouds in two channels: the shares, and unit variances times 1 / share in each."""
    a = RNG.normal(size=(300, 2)) * [0.1, 2.0] + [-1.0, -20.0]
    b = RNG.normal(size=(100, 2)) * [0.3, 1.0] + [3.0, 10.0]
    x = np.concatenate([a, b])
    there = {}
    state = in_torch.initial_mixture(2, 2, dtype=torch.float64)
    there["torch"] = in_torch.mixture_norm(torch.tensor(x), state, momentum=1.0)
    state = _wide(in_jax.initial_mixture(2, 2))
    for name, seeds in (("jax", None), ("seeds", np.array([[2.0, 5.0], [0.0, 0.0]]))):
        given = None if seeds is None else jnp.asarray(seeds)
        there[name] = in_jax.mixture_norm(
            jnp.asarray(x), state, momentum=0.0, epsilon=1e-12, seeds=given
        )
    for name, (y, mixture) in there.items():
        order = [1, 0] if name == "seeds" else [0, 1]  # seeds say which is which
        weight, mean = (np.asarray(each)[order] for each in mixture[:2])
        assert np.abs(weight - [0.75, 0.25]).max() < VISIBLE
        assert np.abs(mean - [a.mean(0), b.mean(0)]).max() < 0.01
        y = np.asarray(y)
        for part, share in ((y[:300], 0.75), (y[300:], 0.25)):
            assert np.abs(part.mean(0)).max() < 0.01
            assert np.abs(part.var(0) * share - 1).max() < 0.01


def test_devices_that_share_an_axis_are_one_batch():
    x = jnp.asarray(X)
    halves = x.reshape(2, 4, 3, 4)
    gate = jnp.asarray(RNG.normal(size=(4, 2)))
    mixture, modes = (
        _wide(in_jax.initial_mixture(2, 4)),
        _wide(in_jax.initial_modes(2, 4)),
    )
    moments = _wide(in_jax.initial_moments(4))
    calls = (
        lambda x, **k: in_jax.mixture_norm(x, mixture, steps=2, **k),
        lambda x, **k: in_jax.mode_norm(x, modes, gate, jnp.zeros(2), **k),
        lambda x, **k: in_jax.stochastic_norm(x, moments, statistics="batch", **k),
    )
    for call in calls:
        y, new = call(x)
        shared, states = jax.jit(
            jax.vmap(lambda half, call=call: call(half, axis_name="devices"), axis_name="devices")
        )(halves)
        assert np.abs(np.asarray(shared).reshape(X.shape) - np.asarray(y)).max() <= SAME_STEP * 10
        for one, all_of_them in zip(new, states, strict=True):
            assert np.abs(np.asarray(all_of_them) - np.asarray(one)[None]).max() <= SAME_STEP * 10


NAMES = ("MixtureNorm", "ModeNorm", "StochasticNorm")


@pytest.mark.parametrize("kind", NAMES)
def test_processes_of_a_group_are_one_batch(kind, monkeypatch):
    """Another process with the same samples changes nothing: all sums, also of gradients, double.

    What really crosses processes is tested where `all_reduce` is.
    """
    knobs = {"statistics": "batch"} if kind == "StochasticNorm" else {}
    results = []
    delta, noise = torch.tensor(RNG.normal(size=(8, 4, 3))), torch.ones(2, 4)
    given = {"noise": noise} if kind == "StochasticNorm" else {}
    for group in (None, "two"):
        monkeypatch.setattr(samples, "all_reduce", lambda sum, group: sum * 2 if group else sum)
        _ = torch.manual_seed(0)
        layer = getattr(torchnorm.normalizers, kind)(4, process_group=group, **knobs).double()
        x = _torch(X).requires_grad_()
        y = layer(x, **given)
        y.backward(delta)
        results.append([y, x.grad, *layer.buffers(), *(p.grad for p in layer.parameters())])
    for alone, together in zip(*results, strict=True):
        assert (alone - together).abs().max() <= SAME_STEP * 10


@pytest.mark.parametrize("kind", NAMES)
def test_one_value_is_enough_to_initialize(kind):
    layer = getattr(jaxnorm.linen.normalizers, kind)()
    init = functools.partial(layer.init, use_running_average=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 4)))
    assert shapes["batch_stats"]["mean"].shape[-1] == 4
    assert shapes["params"]["scale"].shape == (4,)


def test_linen_draws_what_nnx_and_torch_draw():
    """A different noise in every call that trains, none in evaluation."""
    x = jnp.asarray(X, jnp.float32)
    layer = jaxnorm.linen.normalizers.StochasticNorm()
    variables = layer.init(jax.random.key(0), x, use_running_average=True)

    @jax.jit
    def train(key):
        return layer.apply(variables, x, False, mutable=["batch_stats"], rngs={"noise": key})[0]

    assert (train(jax.random.key(1)) != train(jax.random.key(2))).any()
    assert (train(jax.random.key(1)) == train(jax.random.key(1))).all()
    assert layer.apply(variables, x, True).shape == x.shape  # without a key


BAD = {
    "rank": ((4,), {}),
    "channels": ((6, 3), {}),
    "one value": ((1, 4), {}),
    "momentum": ((6, 4), {"momentum": 1.5}),
    "not finite": ((6, 4), {"momentum": float("nan")}),
    "no number": ((6, 4), {"momentum": "slow"}),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused_in_the_same_words_and_changes_nothing(name, bad):
    shape, knobs = BAD[bad]
    x = np.ones(shape, np.float32)
    with pytest.raises((TypeError, ValueError)) as error:
        _function(name)(jnp.asarray(x), axis=1, **knobs)
    layer = getattr(torchnorm.normalizers, name)(4)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(error.type) as other:
        (getattr(torchnorm.normalizers, name)(4, **knobs) if knobs else layer)(torch.tensor(x))
    assert str(error.value) == str(other.value)
    assert all((layer.state_dict()[k] == v).all() for k, v in before.items())


def _function(name: str) -> Any:
    """The function of JAX with a state for four channels."""
    if name == "MixtureNorm":
        mixture = in_jax.initial_mixture(2, 4)
        return lambda x, **k: in_jax.mixture_norm(x, mixture, **k)
    if name == "ModeNorm":
        modes = in_jax.initial_modes(2, 4)
        gate = jnp.ones((4, 2), jnp.float32), jnp.zeros(2, jnp.float32)
        return lambda x, **k: in_jax.mode_norm(x, modes, *gate, **k)
    moments = in_jax.initial_moments(4)
    return lambda x, **k: in_jax.stochastic_norm(x, moments, **k)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("MixtureNorm", {"components": 0}),
        ("MixtureNorm", {"steps": -1}),
        ("MixtureNorm", {"floor": 0.0}),
        ("ModeNorm", {"modes": 1.5}),
        ("StochasticNorm", {"samples": 1}),
        ("StochasticNorm", {"statistics": "population"}),
        ("MultiplicativeNoise", {"rate": 1.0}),
        ("MultiplicativeNoise", {"distribution": "cauchy"}),
    ],
    ids=str,
)
def test_bad_knobs_are_refused_in_the_same_words(name, knobs):
    channels = () if name == "MultiplicativeNoise" else (4,)
    with pytest.raises((TypeError, ValueError)) as error:
        layer = getattr(jaxnorm.linen.normalizers, name)(**knobs)
        more = {} if not channels else {"use_running_average": True}
        layer.init(jax.random.key(0), jnp.ones((2, 4)), **more)
    with pytest.raises(error.type) as other:
        getattr(torchnorm.normalizers, name)(*channels, **knobs)
    assert str(error.value) == str(other.value)


def test_arguments_of_another_shape_are_refused_in_the_same_words():
    x, wrong = np.ones((6, 4), np.float32), np.ones((3, 4), np.float32)
    for name, argument in (("MixtureNorm", "seeds"), ("StochasticNorm", "noise")):
        with pytest.raises(ValueError, match=f"{argument}: got shape") as error:
            _function(name)(jnp.asarray(x), **{argument: jnp.asarray(wrong)})
        with pytest.raises(ValueError, match=f"{argument}: got shape") as other:
            layer = getattr(torchnorm.normalizers, name)(4)
            layer(torch.tensor(x), **{argument: torch.tensor(wrong)})
        assert str(error.value) == str(other.value)
