"""Input standardization of both packages: against NumPy, in streams, and as layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxnorm
import torchnorm
from jaxnorm.normalizers import standardize as in_jax
from parity_tests.tolerances import SAME_STEP
from torchnorm.normalizers import standardize as in_torch

RNG = np.random.default_rng(0)
TRAIN = RNG.normal(size=(40, 4, 5, 3)) * np.array([0.1, 1.0, 30.0]) + np.array([0.0, 1e4, -3.0])
TEST = RNG.normal(size=(7, 4, 5, 3)) * 10


def _axes(axis: Any) -> tuple[int, ...]:
    given = axis if isinstance(axis, tuple) else (axis,)
    return tuple(k for k in range(4) if k not in [each % 4 for each in given])


@pytest.mark.parametrize("axis", [-1, (1, 2, 3), (), (1, 3)], ids=str)
def test_both_packages_are_numpy_at_once_and_in_streams(axis):
    others = _axes(axis)
    mean, std = TRAIN.mean(others, keepdims=True), TRAIN.std(others, keepdims=True)
    expected, back = (TEST - mean) / std, TEST * std + mean
    parts = np.split(TRAIN, [1, 2, 17])
    for module, array in ((in_jax, jnp.asarray), (in_torch, torch.tensor)):
        for state in (
            module.fit(array(TRAIN), axis),
            module.fit_stream([array(part) for part in parts], axis),
        ):
            found = np.asarray(module.apply(array(TEST), state, axis))
            assert np.abs(found - expected).max() <= SAME_STEP * np.abs(expected).max()
            inverse = np.asarray(module.invert(array(TEST), state, axis))
            assert np.abs(inverse - back).max() <= SAME_STEP * np.abs(back).max()


@pytest.mark.parametrize("mean", [0.1, 1e4, 1e9])
def test_large_means_and_constant_features(mean):
    """A mean of 1e9 costs float64 no more than the data themselves have lost."""
    x = np.stack([mean + RNG.normal(size=1000), np.full(1000, mean / 3)], 1)
    centered = x[:, 0] - mean
    expected = (centered - centered.mean()) / centered.std()
    parts = np.split(x, [1, 500])
    for module in (in_jax, in_torch):
        for state in (module.fit(x), module.fit_stream(parts)):
            assert float(state.var[1]) == 0.0
            y = np.asarray(module.apply(np_or_torch(module, x), state))
            assert (y[:, 1] == 0).all()
            assert np.abs(y[:, 0] - expected).max() <= 1e-12 * max(mean / 1e3, 1)
            other = np.asarray(module.apply(np_or_torch(module, x + 2.0), state))
            assert np.abs(other[:, 1] - 2).max() <= 1e-15 * mean + 1e-15


def np_or_torch(module: Any, x: np.ndarray) -> Any:
    """What the module applies to."""
    return torch.tensor(x) if module is in_torch else x


def test_float32_and_bfloat16_lose_nothing_to_the_mean():
    x = (1e4 + RNG.normal(size=(500, 1))).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / wide.std()
    # Without the second half of the mean an error of 3e-4 is left.
    for found in (
        in_jax.apply(jnp.asarray(x), in_jax.fit(x)),
        in_torch.apply(torch.tensor(x), in_torch.fit(x)),
    ):
        assert np.abs(np.asarray(found) - expected).max() < 1e-6
    low = in_jax.apply(jnp.asarray(x - 1e4, jnp.bfloat16), in_jax.fit(x - 1e4))
    there = in_torch.apply(torch.tensor(x - 1e4).bfloat16(), in_torch.fit(x - 1e4))
    assert (low.dtype, there.dtype) == (jnp.bfloat16, torch.bfloat16)
    assert np.abs(np.asarray(low, np.float64) - expected).max() < 0.05
    assert (there.float().numpy() == np.asarray(low, np.float32)).all()
    image = RNG.integers(0, 256, (9, 2), dtype=np.uint8)
    assert in_jax.apply(jnp.asarray(image), in_jax.fit(image)).dtype == jnp.float32
    assert in_torch.apply(torch.tensor(image), in_torch.fit(image)).dtype == torch.float32


def test_layers_are_fitted_in_passing_and_learn_nothing_else():
    parts, delta = np.split(TRAIN, [8]), RNG.normal(size=TEST.shape)
    state = in_jax.fit(TRAIN)
    expected = (TEST - state.mean) / np.sqrt(state.var)
    slope = delta / np.sqrt(state.var)
    layer = jaxnorm.linen.normalizers.Standardize()
    variables = layer.init(jax.random.key(0), jnp.asarray(TEST))
    for part in parts:
        _, variables = layer.apply(
            variables, jnp.asarray(part), fit=True, mutable=["standardization"]
        )
    module = jaxnorm.nnx.normalizers.Standardize(3, state=in_jax.fit(parts[0]))
    module(jnp.asarray(parts[1]), fit=True)
    there = torchnorm.normalizers.Standardize(3).fit(parts[0].transpose(0, 3, 1, 2))
    there.update(torch.tensor(parts[1]).movedim(-1, 1))
    assert not list(there.parameters())
    before = [np.asarray(each) for each in (variables["standardization"]["var"], there.var)]
    for call in (lambda x: layer.apply(variables, x), module):
        y, pull = jax.vjp(call, jnp.asarray(TEST))
        assert np.abs(np.asarray(y) - expected).max() <= SAME_STEP * np.abs(expected).max()
        g = np.asarray(pull(jnp.asarray(delta))[0])
        assert np.abs(g - slope).max() <= SAME_STEP * np.abs(slope).max()
    x = torch.tensor(TEST).movedim(-1, 1).requires_grad_()
    y = there(x)
    y.backward(torch.tensor(delta).movedim(-1, 1))
    found, g = (each.detach().movedim(1, -1).numpy() for each in (y, x.grad))
    assert np.abs(found - expected).max() <= SAME_STEP * np.abs(expected).max()
    assert np.abs(g - slope).max() <= SAME_STEP * np.abs(slope).max()
    after = [np.asarray(each) for each in (variables["standardization"]["var"], there.var)]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    saved = torchnorm.normalizers.Standardize(3)
    saved.load_state_dict(there.state_dict())
    assert (saved(x) == y).all()


NAN = np.array([[1.0], [np.nan]])


@pytest.mark.parametrize(
    "call",
    [
        lambda module, array: module.fit(array(NAN)),
        lambda module, array: module.fit(array(NAN * 1j)),
        lambda module, array: module.fit(array(NAN[:0])),
        lambda module, array: module.fit(array(NAN), (3,)),
        lambda module, array: module.fit_stream([]),
        lambda module, array: module.fit_stream([array(np.ones((2, k))) for k in (1, 2)]),
        lambda module, array: module.apply(
            array(np.ones((2, 3))), module.fit(array(np.ones((2, 2))))
        ),
    ],
)
def test_bad_data_are_refused_in_the_same_words(call):
    with pytest.raises((TypeError, ValueError)) as error:
        call(in_jax, np.asarray)
    with pytest.raises(error.type) as other:
        call(in_torch, torch.tensor)
    assert str(error.value) == str(other.value)


def test_a_layer_that_has_seen_nothing_says_so():
    layer = jaxnorm.linen.normalizers.Standardize()
    variables = layer.init(jax.random.key(0), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="has seen no data") as error:
        layer.apply(variables, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="has seen no data") as other:
        torchnorm.normalizers.Standardize(3)(torch.ones(2, 3))
    assert str(error.value) == str(other.value)
