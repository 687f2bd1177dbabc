"""The output penalties of both packages against their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxnorm import penalties as in_jax
from parity_tests.tolerances import SAME_STEP
from torchnorm import penalties as in_torch

X = np.random.default_rng(0).normal(size=(4, 3, 2)) * np.array([1.0, 30.0])
X[0, 0] = 0.0  # as behind a ReLU
DELTA = np.random.default_rng(1).normal(size=X.shape)
L1, L2 = 0.7, 0.3
COUNTS = {"sum": 1, "mean": X.size, "batch_mean": len(X)}


@pytest.mark.parametrize("reduction", COUNTS)
def test_penalties_and_their_gradients(reduction):
    count = COUNTS[reduction]
    value = {"l1": L1 * np.abs(X).sum() / count, "l2": L2 * (X**2).sum() / count}
    slope = {"l1": L1 * np.sign(X) / count, "l2": L2 * 2 * X / count}
    for name, weight in (("l1", L1), ("l2", L2)):
        function = getattr(in_jax, f"{name}_penalty")
        found, g = jax.value_and_grad(lambda x, f=function, w=weight: f(x, w, reduction))(
            jnp.asarray(X)
        )
        x = torch.tensor(X, requires_grad=True)
        there = getattr(in_torch, f"{name}_penalty")(x, weight, reduction)
        there.backward()
        for penalty, gradient in ((found, g), (there.detach(), x.grad)):
            assert abs(float(penalty) - value[name]) <= SAME_STEP * value[name]
            assert np.abs(np.asarray(gradient) - slope[name]).max() <= SAME_STEP
    expected = DELTA + slope["l1"] + slope["l2"]
    y, pull = jax.vjp(lambda x: in_jax.penalize(x, L1, L2, reduction), jnp.asarray(X))
    x = torch.tensor(X, requires_grad=True)
    there = in_torch.OutputPenalty(L1, L2, reduction)(x)
    there.backward(torch.tensor(DELTA))
    for out, gradient in ((y, pull(jnp.asarray(DELTA))[0]), (there.detach(), x.grad)):
        assert (np.asarray(out) == X).all()
        assert np.abs(np.asarray(gradient) - expected).max() <= SAME_STEP


def test_low_precision_is_summed_in_float32():
    ones = np.ones(1000)
    assert float(in_jax.l1_penalty(jnp.asarray(ones, jnp.bfloat16), reduction="sum")) == 1000
    x = torch.tensor(ones, dtype=torch.bfloat16, requires_grad=True)
    assert float(in_torch.l1_penalty(x, reduction="sum").detach()) == 1000
    in_torch.penalize(x, 1.0).sum().backward()
    g = jax.grad(lambda x: in_jax.penalize(x, 1.0).sum())(jnp.asarray(ones, jnp.bfloat16))
    assert (x.grad.dtype, g.dtype) == (torch.bfloat16, jnp.bfloat16)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("l1_penalty", (-1.0,)),
        ("l2_penalty", (float("nan"),)),
        ("l2_penalty", (True,)),
        ("penalize", (1.0, -2.0)),
        ("penalize", (1.0, 2.0, "median")),
    ],
)
def test_bad_knobs_are_refused_in_the_same_words(name, args):
    with pytest.raises((TypeError, ValueError)) as error:
        getattr(in_jax, name)(jnp.asarray(X), *args)
    with pytest.raises(error.type) as other:
        getattr(in_torch, name)(torch.tensor(X), *args)
    assert str(error.value) == str(other.value)
