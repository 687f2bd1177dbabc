"""The knobs of a study's runs are those of `jaxnorm.Rule`, and what the tables make of them."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxnorm
from experiments.networks.convnet import patch_convolution
from experiments.studies import decay
from experiments.studies.tasks import MOMENTUM, Task, final_losses
from experiments.training.method import make_optimizer
from experiments.training.trainer import Judge, Knobs, Trainer
from experiments.workloads import WORKLOADS, Samples
from jaxnorm.rule import due_steps

TINY = Task("tiny", "photo", widths=(4,))
sgd = partial(make_optimizer, "sgd", MOMENTUM)


@pytest.fixture(scope="module")
def photo():
    """The photograph."""
    return WORKLOADS[TINY.workload].load()


def by_hand(workload, network, trainer, rate, seed):
    """The losses of a run, step by step, with the public API alone."""
    x = jnp.asarray(workload.train.inputs)
    y = jnp.asarray(workload.train.targets)
    params = network.init(jax.random.key(seed), x[:2], train=False)["params"]
    state = jaxnorm.linen.TrainState.create(
        apply_fn=network.apply,
        params=params,
        neuron_stats=jaxnorm.linen.init_statistics(network, {"params": params}, x[:2], train=False),
        tx=jaxnorm.in_neuron_coordinates(optax.sgd(rate, momentum=0.9)),
    )

    @jax.jit
    def step(state, inputs, targets):
        def loss(params, stats):
            outputs = network.apply({"params": params, "neuron_stats": stats}, inputs, train=True)
            return workload.loss(outputs, targets)

        value, (grads, stats) = jax.value_and_grad(loss, (0, 1))(state.params, state.neuron_stats)
        return state.apply_gradients(grads=grads, neuron_stats=stats), value

    losses = []
    for row in workload.batches(seed, trainer.steps, trainer.batch_size):
        state, loss = step(state, x[row], y[row])
        losses.append(float(loss))
    return losses


def test_trainer_is_the_plain_loop(photo):
    """Each run of the sweep is what its user would have written."""
    network = TINY.network(jaxnorm.Rule(), 3)
    trainer = Trainer(network, photo, sgd, 2, 14, 16)
    finals = final_losses(trainer(Knobs([0.003, 0.01])), 16)
    assert finals.shape == (2, 2)
    for k, rate in enumerate((0.003, 0.01)):
        expected = np.mean(by_hand(photo, network, trainer, rate, 1)[-2:])
        np.testing.assert_allclose(finals[k, 1], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("knobs", "share"),
    [({}, None), ({"smoothing": 0.0}, None), ({"statistics_every": 4, "decay": 0.5}, 0.5)],
)
def test_decay_and_schedule_are_those_of_the_rule(photo, knobs, share):
    """A schedule by mask is `statistics_every`, and the decay is that of the rule."""
    steps, rule = 90, jaxnorm.Rule(**knobs)
    trainer = Trainer(TINY.network(rule, 3), photo, sgd, 1, steps, 16)

    def last(taken):
        decays = None if share is None else [share]
        return trainer(Knobs([0.3], decays, taken)).losses[0, 0, -2:].mean()

    mask = np.array(due_steps(steps, rule.interval))[None]
    assert 25 < mask.sum() < 60
    expected = np.mean(by_hand(photo, TINY.network(rule, 3), trainer, 0.3, 0)[-2:])
    np.testing.assert_allclose(last(mask), expected, rtol=1e-4)
    for other in (last(np.ones_like(mask)), last(np.roll(mask, 1))):
        assert abs(other / expected - 1) > 5e-4


def test_decays_that_are_swept_are_of_every_batch(photo):
    """Also 0 among them, which is traced as the others are."""
    trainer = Trainer(TINY.network(decay.RULE, 3), photo, sgd, 1, 40, 16)
    losses = trainer(Knobs([0.03, 0.03], [0.0, 0.9])).losses[:, 0]
    for row, share in enumerate((0.0, 0.9)):
        network = TINY.network(replace(decay.RULE, decay=share), 3)
        np.testing.assert_allclose(
            losses[row], by_hand(photo, network, trainer, 0.03, 0), rtol=1e-3
        )
    assert abs(losses[1, -1] / losses[0, -1] - 1) > 3e-3


def test_a_run_that_diverges_is_told_from_one_that_trains(photo):
    """Too large a rate gives inf, and so does a loss that only ends above the first one."""
    judge = Judge(Samples(photo.train.inputs[:32], photo.train.targets[:32]), photo.loss)
    trainer = Trainer(TINY.network(jaxnorm.Rule(), 3), photo, sgd, 1, 14, 16, judge)
    finals = final_losses(trainer(Knobs([0.01, 1e30, -0.01])), 16)[:, 0]
    assert 0 < finals[0] < 1
    assert np.isinf(finals[1:]).all()  # the last one climbs


@pytest.mark.parametrize("side", [14, 7])
def test_patches_are_the_convolution(side):
    """The product with all patches is XLA's convolution, padding and stride included."""
    x = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)
    np.testing.assert_allclose(patch_convolution(x, kernel), expected, atol=1e-5)


def test_powers_are_step_sizes(photo):
    """0 is `Rule(step_size="standardized")`, 1 is "plain", and 1/2 is neither."""
    trainer = Trainer(TINY.network(jaxnorm.Rule(), 3), photo, sgd, 1, 14, 16)
    losses = trainer(Knobs([0.03] * 3, relative=[0.0, 0.5, 1.0])).losses[:, 0]
    for row, step_size in ((0, "standardized"), (2, "plain")):
        network = TINY.network(jaxnorm.Rule(step_size=step_size), 3)
        expected = by_hand(photo, network, trainer, 0.03, 0)
        np.testing.assert_allclose(losses[row], expected, rtol=1e-4)
        assert abs(losses[1, -1] / expected[-1] - 1) > 1e-3
