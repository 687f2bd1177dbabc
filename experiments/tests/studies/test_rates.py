"""The study of rates: what is measured, by hand, and which cells there are."""

import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from experiments.studies.measures import measure, pieces, share_of_steps, window
from experiments.studies.options import EntryName, ProblemName, RatesOptions
from experiments.studies.problems import ENTRIES, PROBLEMS
from experiments.studies.rates import Rates, optimizer_of
from experiments.studies.rates_tables import make
from experiments.studies.tasks import TASKS
from experiments.training.trainer import initialize

PLAIN = {-4: [4.0, 4.0], -2: [1.0, 3.0], 0: [math.inf, 9.0]}
CURVES = {index: [[9.0, 3.0, 1.0, 1.0], [9.0, 3.0, 1.0, 1.0]] for index in (-4, -2, 0)}
FURTHER = {"curve": CURVES, "test": {index: [0.5, 0.7] for index in CURVES}}


def test_names_agree() -> None:
    """The command line knows the problems and the methods, in their order."""
    assert get_args(ProblemName) == tuple(PROBLEMS)
    assert get_args(EntryName) == tuple(ENTRIES)


def test_measures_by_hand() -> None:
    """Losses over plain's best of 2; paired errors; its own best rate is a decade below."""
    one = measure({-6: [1.0, 1.0], -4: [0.5, 1.5], -2: [1.0, 1.0], 0: [3.0, 3.0]}, FURTHER, PLAIN)
    assert one is not None
    assert (one.at_plain, one.best, one.rate, one.at_edge) == (0.5, 0.5, -6, True)
    assert one.error == pytest.approx(np.std([0, -2], ddof=1) / math.sqrt(2) / 2)
    assert one.factor == pytest.approx(0.1)
    assert one.share == pytest.approx(1)
    assert one.test == pytest.approx(0.6)
    lost = measure({-4: [1.0, 1.0], -2: [math.inf, 1.0], 0: [math.inf] * 2}, FURTHER, PLAIN)
    assert lost is not None
    assert lost.at_plain == math.inf
    assert lost.share == -math.inf
    assert measure({-4: [math.inf], -2: [math.inf], 0: [math.inf]}, FURTHER, PLAIN) is None


def test_a_gain_too_small_has_no_share() -> None:
    """1 % is no gain that a rate could get a share of."""
    one = measure({-4: [4.0] * 2, -2: [1.98] * 2, 0: [9.0] * 2}, FURTHER, PLAIN)
    assert one is not None
    assert one.share is None


def test_windows_by_hand() -> None:
    """Log-log lines between the rates; an end at the last rate before one that diverges."""
    slope = math.log(1.05) / math.log(2)  # of the half decade on either side
    assert window({-2: [2.0], 0: [1.0], 2: [2.0]}) == pytest.approx(10 ** (slope))
    assert window({-2: [2.0], 0: [1.0], 2: [math.inf]}) == pytest.approx(10 ** (slope / 2))
    assert window({-2: [1.04], 0: [1.0], 2: [1.02]}) == pytest.approx(10)


def test_steps_by_hand() -> None:
    """The mean of the seeds, of three pieces: below 2 at the end of the fourth of five."""
    curves = [[9.0, 3.0, 1.0, 1.0, 1.0], [9.0, 3.0, 3.0, 1.0, 1.0]]
    assert share_of_steps(curves, 2.0) == pytest.approx(0.8)
    assert share_of_steps(curves, 0.5) == math.inf
    assert share_of_steps([[9.0, None, None, None]], 2.0) == math.inf


def test_pieces_are_means() -> None:
    """All losses count, once each; a short curve stays as it is."""
    losses = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(pieces(losses, 3), [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]])
    np.testing.assert_array_equal(pieces(losses, 50), losses)


def test_tables_say_what_diverges() -> None:
    """A method without a rate that trains, one that cannot be used, worst and median."""
    fine = measure(PLAIN, FURTHER, PLAIN)
    found = {
        "photo_sgd": {"plain": fine, "batchnorm": None, "neuronwise": fine},
        "text_adamw": {"plain": fine, "neuronwise": fine},
    }
    first = make(found)[0].markdown().splitlines()
    assert first[2].split("|")[3:5] == [" diverges ", " **1.000 ± 0** "]
    assert first[3].split("|")[3] == "  "
    worst = next(line for line in first if line.startswith("| worst"))
    assert worst.split("|")[3:5] == [" diverges ", " 1 "]


def test_cells_begin_with_plain() -> None:
    """It is what all others are held against, and is there unasked; transformers keep LayerNorm."""
    options = RatesOptions(
        problems=("photo_sgd", "text_adamw"), methods=("neuronwise", "batchnorm")
    )
    cells = [cell[:2] for cell in Rates(options).cells()]
    assert cells == [
        ("photo_sgd", "plain"),
        ("photo_sgd", "batchnorm"),
        ("photo_sgd", "neuronwise"),
        ("text_adamw", "plain"),
        ("text_adamw", "neuronwise"),
    ]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedules(schedule: str) -> None:
    """With a constant gradient and no momentum to speak of, the steps are the rates."""
    optimizer = optimizer_of("sgd", schedule, 10, 0.5)
    params = jnp.zeros(())
    state, steps = optimizer.init(params), []
    for _ in range(10):
        update, state = optimizer.update(jnp.ones(()), state, params)
        steps.append(-float(update))
    momentum = np.convolve(np.ones(10), 0.9 ** np.arange(10))[:10]
    factor = 0.5 + 0.5 * np.cos(np.pi * np.arange(10) / 10) if schedule == "cosine" else 1
    np.testing.assert_allclose(steps, 0.5 * factor * momentum, rtol=1e-5)


@pytest.mark.parametrize("name", ["tanh", "text"])
def test_networks_are_the_same_under_every_rule(name: str) -> None:
    """The same first weights and outputs; normalizers are where they belong."""
    task = TASKS[name]
    x = jax.random.normal(jax.random.key(0), (2, 4))
    if name == "text":
        x = jax.random.randint(jax.random.key(0), (2, 8), 0, 11)
    outputs = []
    for rule in (None, jaxnorm.Rule()):
        network = task.network(rule, 11)
        variables = initialize(network, 3, x)
        outputs.append(network.apply(variables, x, train=False))
        assert ("LayerNorm_0" in variables["params"]) == (name == "text")
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)


def test_transformer_does_not_see_what_comes() -> None:
    """Another last character changes the last logits only."""
    network = TASKS["text"].network(None, 11)
    x = jax.random.randint(jax.random.key(0), (2, 8), 0, 11)
    variables = initialize(network, 0, x)
    first, second = (
        network.apply(variables, tokens, train=False)
        for tokens in (x, x.at[:, -1].set((x[:, -1] + 1) % 11))
    )
    np.testing.assert_array_equal(first[:, :-1], second[:, :-1])
    assert (first[:, -1] != second[:, -1]).any()
