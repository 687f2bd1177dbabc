"""Ollivier's metric against the update of QDRiemaNNLinear in NumPy, and JAX against PyTorch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxnorm
import torchnorm
from jaxnorm.tests import nets as nets_optax
from parity_tests import steps
from parity_tests.oracle import Knobs
from parity_tests.steps import Group
from parity_tests.test_bnp import IN_JAX, IN_TORCH, LAYERS
from parity_tests.tolerances import LOCK_STEP, SAME_STEP, SAME_STEPS, VISIBLE

#: M2 M00 - M0^2 cancels in what was published: as many digits as (mean / sigma)^2 has.
SMALL = ("dense", "more inputs than samples", "no bias", "conv, groups", "conv, mask",
         "transposed, torch")  # fmt: skip
SLOW = ("conv", "conv, no bias", "transposed", "mixed")


def metric(group: Group, memory: Any, gamma: float = 0.01, epsilon: float = 1e-12) -> Any:
    """One call of accGradParameters, on raw sums as published."""
    x, delta, g_w, g_b, mask = group
    m = delta**2
    new = m.sum(0), m.T @ x, m.T @ x**2
    if memory is not None:
        new = tuple(
            (1 - gamma) * old + gamma * fresh for old, fresh in zip(memory, new, strict=True)
        )
    m00, m0, m2 = new
    if g_b is None:  # qdFlag = false
        return g_w / (m2 + epsilon) * mask, None, new
    m0 = m0 * mask
    numerator = g_w * m00[:, None] - m0 * g_b[:, None]
    denominator = np.clip(m2 * m00[:, None] - m0**2, epsilon, 1e25)
    new_w = numerator / denominator
    new_b = (g_b - (m0 * new_w).sum(1)) / (m00 + epsilon)
    return new_w, new_b, new


def around(**kwargs: Any) -> Any:
    """`torchnorm.optim.quasi_diagonal` with these knobs."""
    return lambda optimizer, model: torchnorm.optim.quasi_diagonal(optimizer, model, **kwargs)


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_both_sides_are_the_published_update(name):
    kwargs = {"gamma": 0.01 if "conv" in name else 0.4}
    every = steps.several(*LAYERS[name])
    expected = steps.published(every, lambda group, memory: metric(group, memory, **kwargs))
    found = []
    if name in IN_JAX:
        tx = jaxnorm.scale_by_quasi_diagonal(**kwargs)
        found.append(steps.optax_side(every, tx, jaxnorm.QUASI_DIAGONAL))
    if name in IN_TORCH:
        found.append(steps.torch_side(every, around(**kwargs)))
    for actual in found:
        assert steps.error(every, actual, expected) <= SAME_STEPS
    assert steps.error(every, found[0], found[-1]) <= SAME_STEP


def test_epsilon_where_there_is_little_to_divide_by():
    """Errors so small that the clip and the sum matter."""
    every = [replace(c, delta=1e-4 * c.delta) for c in steps.several(*LAYERS["dense"])]
    kwargs = {"gamma": 0.5, "epsilon": 1e-7}
    expected = steps.published(every, lambda group, memory: metric(group, memory, **kwargs))
    default = steps.published(every, lambda group, memory: metric(group, memory, gamma=0.5))
    assert steps.error(every, default, expected) > VISIBLE
    tx = jaxnorm.scale_by_quasi_diagonal(**kwargs)
    actual = steps.optax_side(every, tx, jaxnorm.QUASI_DIAGONAL)
    assert steps.error(every, actual, expected) <= SAME_STEPS
    assert steps.error(every, steps.torch_side(every, around(**kwargs)), expected) <= SAME_STEPS


def test_training_in_lock_step():
    """Unconverted models, SGD with momentum around, against NumPy and each other."""
    network = steps.Network(metric)
    tx = optax.chain(jaxnorm.scale_by_quasi_diagonal(), optax.sgd(0.01, momentum=0.9))
    model = steps.torch_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    torchnorm.optim.quasi_diagonal(optimizer, model)
    flax = steps.in_linen(tx, jaxnorm.QUASI_DIAGONAL)
    plain = steps.in_plain_torch(model, optimizer)
    before = copy.deepcopy(network.layers)
    for x, y in steps.batches(6):
        network.train(x, y, 0.01, 0.9)
        flax.train(x, y)
        plain.train(x, y)
        assert steps.distance(flax.layers(), network.layers) <= SAME_STEP
        assert steps.distance(plain.layers(), network.layers) <= SAME_STEP
        assert steps.distance(plain.layers(), flax.layers()) <= SAME_STEP
    assert steps.distance(network.layers, before) > VISIBLE


def test_preset_is_the_metric_but_for_its_size():
    """One step: M00 times the published update, one number for each neuron."""
    every = steps.several(*LAYERS["dense"], count=1)
    size = {"step_size": jaxnorm.QUASI_DIAGONAL.step_size}
    knobs = Knobs(weighting="error", shrinkage=0.0, damping=0.0, epsilon=0.0, **size)
    case = replace(every[0], knobs=knobs)
    update = steps.published(every, metric)[0]
    mass = (case.delta**2).sum(0)
    assert mass.max() / mass.min() > 2
    expected = [steps.Gradient(update.kernel * mass, update.bias * mass)]
    actual = [steps.Gradient(case.expected.g_kernel, case.expected.g_bias)]
    assert steps.error(every, actual, expected) <= SAME_STEPS


def test_an_input_that_never_changes_has_no_gradient():
    """Instead of rounding over epsilon."""
    every = steps.several(None, "constant")
    assert (every[0].x[:, -1] == every[0].x[0, -1]).all()
    tx = jaxnorm.scale_by_quasi_diagonal()
    flax = steps.optax_side(every, tx, jaxnorm.QUASI_DIAGONAL)
    plain = steps.torch_side(every, around())
    expected = steps.published(every, metric)
    for case, a, b, e in zip(every, flax, plain, expected, strict=True):
        varies = np.ptp(case.x, 0) > 0
        for kernel in (a.kernel, b.kernel):
            assert (kernel[~varies] == 0).all()
            np.testing.assert_allclose(kernel[varies], e.kernel[varies], rtol=1e-9)


def test_torch_micro_batches_and_state_dict():
    """Gradients that are accumulated have one metric; a new optimizer goes on in the middle."""
    network, models = steps.Network(lambda g, memory: metric(g, memory, 0.3)), []
    for n, (x, y) in enumerate(steps.batches(4)):
        network.train(x, y, 0.01, 0.0)
        if n % 2 == 0:
            model = steps.torch_network()
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            torchnorm.optim.quasi_diagonal(optimizer, model, 0.3)
            if models:
                model.load_state_dict(models[-1][0].state_dict())
                optimizer.load_state_dict(models[-1][1].state_dict())
            models.append((model, optimizer))
        optimizer.zero_grad()
        for part, target in zip(np.split(x, 3), np.split(y, 3), strict=True):
            z = model(torch.tensor(part))
            (((z - torch.tensor(target)) ** 2).sum() / 2).backward()
        optimizer.step()
        layers = steps.in_plain_torch(model, optimizer).layers()
        assert steps.distance(layers, network.layers) <= SAME_STEP
    assert set(optimizer.state_dict()["quasi_diagonal"]["0"]) == {"mass", "mean", "second"}


def test_a_layer_called_twice():
    """Both calls are one batch, as for the gradient."""
    x, _ = steps.batches(1)[0]
    model = torch.nn.Linear(5, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    torchnorm.optim.quasi_diagonal(optimizer, model)
    first = model(torch.tensor(x))
    z = model(torch.tanh(first))
    first.retain_grad()
    z.retain_grad()
    z.square().sum().backward()
    h = np.concatenate([x, torch.tanh(first).detach().numpy()])
    delta = np.concatenate([first.grad.numpy(), z.grad.numpy()])
    new_w, new_b, _ = metric(Group(h, delta, delta.T @ h, delta.sum(0)), None)
    optimizer.step()
    np.testing.assert_allclose(model.weight.grad, new_w, rtol=LOCK_STEP)
    np.testing.assert_allclose(model.bias.grad, new_b, rtol=LOCK_STEP)


def test_errors():
    net = nets_optax.make("linen converted", jaxnorm.BNP)
    tx = jaxnorm.scale_by_quasi_diagonal()
    grads, batch = jax.tree.map(jnp.ones_like, (net.params, net.stats))
    with pytest.raises(ValueError, match="without 'mass' for 'Dense_0', expected all of mass"):
        tx.update(grads, tx.init(net.params), neuron_stats=batch)
    with pytest.raises(ValueError, match="neuron_stats: got None"):
        tx.update(grads, tx.init(net.params))
    model = steps.torch_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for change in (
        jaxnorm.scale_by_quasi_diagonal,
        lambda **kwargs: torchnorm.optim.quasi_diagonal(optimizer, model, **kwargs),
    ):
        with pytest.raises(ValueError, match=r"gamma: got 0.0, expected a number in \(0, 1\]"):
            change(gamma=0.0)
        with pytest.raises(ValueError, match=r"epsilon: got 0\.0, expected a finite number > 0"):
            change(epsilon=0.0)
        with pytest.raises(TypeError, match="gamma: got None"):
            change(gamma=None)
