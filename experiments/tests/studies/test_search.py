"""The searches for a best rate: what they train, and where they stop."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxnorm
from experiments.errors import DataError
from experiments.studies import decay as small_batches
from experiments.studies import search as sweeps
from experiments.studies import statistics_every as thinning
from experiments.studies import step_scale as rates
from experiments.studies.search import Setting, Task, rate_of, search, sgd, trainer

TINY = Task("tiny", "photo", 2, widths=(4,))


@pytest.fixture(scope="module")
def photo():
    """The photograph."""
    return TINY.load()


def by_hand(workload, network, setting, rate, seed, takes=lambda step: True):
    """The losses of a run, step by step, with the public API alone."""
    x = jnp.asarray(workload.train.inputs)
    y = jnp.asarray(workload.train.targets)
    params = network.init(jax.random.key(seed), x[:2])["params"]
    state = jaxnorm.linen.TrainState.create(
        apply_fn=network.apply,
        params=params,
        neuron_stats=jaxnorm.linen.init_statistics(network, {"params": params}, x[:2]),
        tx=jaxnorm.in_neuron_coordinates(optax.sgd(rate, momentum=0.9)),
    )

    @jax.jit
    def loss_and_grads(params, stats, inputs, targets):
        def loss(params, stats):
            outputs = network.apply({"params": params, "neuron_stats": stats}, inputs)
            return workload.loss(outputs, targets)

        return jax.value_and_grad(loss, (0, 1))(params, stats)

    losses = []
    for step, row in enumerate(workload.batches(seed, setting.steps, setting.batch_size)):
        loss, (grads, stats) = loss_and_grads(state.params, state.neuron_stats, x[row], y[row])
        if not takes(step):
            stats = jax.tree.map(jnp.zeros_like, stats)
        state = state.apply_gradients(grads=grads, neuron_stats=stats)
        losses.append(float(loss))
    return losses


def test_trainer_is_the_plain_loop(photo):
    """Each run of the sweep is what its user would have written."""
    network = TINY.network(jaxnorm.Rule(), 3)
    setting = Setting(photo, network, 16, 14, sgd)
    finals = trainer(setting, 2)([0.003, 0.01])
    assert finals.shape == (2, 2)
    for k, rate in enumerate((0.003, 0.01)):
        expected = np.mean(by_hand(photo, network, setting, rate, 1)[-2:])
        np.testing.assert_allclose(finals[k, 1], expected, rtol=1e-4)


def test_decay_and_schedule_are_those_of_the_rule(photo, monkeypatch):
    """A schedule by mask is `statistics_every`, and the decay is that of the rule."""
    monkeypatch.setattr("jaxnorm.backward.linear_operation.WARM_UP", 3)
    setting = Setting(photo, TINY.network(jaxnorm.Rule(), 3), 16, 14, sgd)
    schedule = thinning.every(4, 3, decay=0.5)
    train = trainer(setting, 1)
    mask = schedule.mask(14)[None]
    assert mask[0].tolist() == [step < 3 or step % 4 == 0 for step in range(14)]
    finals = train([0.01], [schedule.decay], mask)
    network = TINY.network(jaxnorm.Rule(statistics_every=4, decay=0.5), 3)
    expected = np.mean(by_hand(photo, network, setting, 0.01, 0)[-2:])
    np.testing.assert_allclose(finals[0, 0], expected, rtol=1e-4)
    for other in (train([0.01], [0.5]), train([0.01], [0.0], mask)):
        assert abs(other[0, 0] / expected - 1) > 1e-3


def test_a_run_that_diverges_is_told_from_one_that_trains(photo):
    """Too large a rate gives inf, and so does a loss that only ends above the first one."""
    setting = Setting(photo, TINY.network(jaxnorm.Rule(), 3), 16, 14, sgd, judged=32)
    finals = trainer(setting, 1)([0.01, 1e30, -0.01])[:, 0]  # the last one climbs
    assert 0 < finals[0] < 1
    assert np.isinf(finals[1:]).all()


@pytest.mark.parametrize("side", [14, 7])
def test_patches_are_the_convolution(side):
    """The product with all patches is XLA's convolution, padding and stride included."""
    x = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)
    np.testing.assert_allclose(sweeps.patch_convolution(x, kernel), expected, atol=1e-5)


@functools.cache
def recorded(task, step_scale):
    """The divisor of each layer, as the statistics of a batch of six hold it."""
    x = jax.random.uniform(jax.random.key(0), (6, 784))
    network = sweeps.TASKS[task].network(jaxnorm.Rule(step_scale=step_scale), 10)
    variables = network.init(jax.random.key(1), x)
    stats = jaxnorm.linen.init_statistics(network, variables, x)

    @jax.jit
    @jax.grad
    def batch(stats):
        return network.apply({**variables, "neuron_stats": stats}, x).sum()

    return {name: float(layer["divisor"]) for name, layer in batch(stats).items()}


@pytest.mark.parametrize("task", ["convnet", "mlp"])
@pytest.mark.parametrize("form", ["none", "bnp", "fan_in", "eigenvalue"])
def test_forms_are_those_of_the_rule(task, form):
    """A divisor that is made from the eigenvalue is what `Rule.step_scale` gives."""
    layers = rates.layers(sweeps.TASKS[task], 6)
    expected = recorded(task, form)
    assert layers.keys() == expected.keys()
    ours = rates.divisors(rates.FORMS[form], layers)
    for (name, value), (c, f) in zip(sorted(expected.items()), ours, strict=True):
        assert c + f * recorded(task, "eigenvalue")[name] == pytest.approx(value, rel=1e-5)


def test_divisors_divide_the_step(photo):
    """A larger rate and a larger divisor are the same run; one layer's alone are another."""
    setting = Setting(photo, TINY.network(jaxnorm.Rule(), 3), 16, 14, sgd)
    train = trainer(setting, 1)
    forms = np.array([[[0, 1], [0, 1]], [[4, 0], [3, 1]], [[4, 0], [0, 1]]], float)
    finals = train([0.01, 0.04, 0.04], divisors=forms)[:, 0]
    np.testing.assert_allclose(finals[1], finals[0], rtol=1e-4)
    assert abs(finals[2] / finals[0] - 1) > 1e-3


def bowl(best, diverges=math.inf):
    """Losses with one minimum, at the index `best`."""
    tried = []

    def train(rates):
        tried.extend(rates)
        losses = [1 + (4 * math.log10(rate) - best) ** 2 for rate in rates]
        return np.array([[v if r < diverges else math.inf] for v, r in zip(losses, rates)])  # noqa: B905

    return train, tried


@pytest.mark.parametrize("best", [-30, -2, 0, 3, 17])
def test_search_ends_with_the_best_inside(best):
    """Wherever it begins, the best rate has two neighbors on either side."""
    train, tried = bowl(best)
    finals = search(train, 1.0)
    assert sweeps.best_index(finals) == best
    assert min(finals) <= best - 2
    assert max(finals) >= best + 2
    assert len(tried) == len(set(tried)) == len(finals)
    assert list(finals) == list(range(min(finals), max(finals) + 1))


def test_search_needs_no_rate_above_one_that_diverges():
    """Above the best rate a diverged neighbor is enough; where all diverge it goes down."""
    train, tried = bowl(50, diverges=rate_of(-14))
    finals = search(train, 1.0)
    assert sweeps.best_index(finals) == -15
    assert max(tried) <= rate_of(2) * 1.001


def test_search_gives_up():
    """Nothing trains at any rate."""
    finals = search(lambda rates: np.full((len(rates), 1), math.inf), 1.0, most=12)
    assert len(finals) == 12
    assert sweeps.best_index(finals) is None


def test_one_rate_for_all():
    """Spread, regret and excess of two cells, by hand."""
    first = rates.Cell("photo", 32, "none", {0: [2.0, 2.0], 2: [1.0, 3.0], 4: [8.0, 8.0]})
    second = rates.Cell("mlp", 32, "none", {0: [9.0, 9.0], 2: [4.0, 4.0], 4: [1.0, 3.0]})
    assert first.best == 0  # of two equal rates the smaller one
    one = rates.shared([first, second])
    assert one.spread == pytest.approx(10)
    assert one.rate == pytest.approx(10**0.5)
    assert one.regret == pytest.approx(10**0.5)
    # At the middle one the second cell has 4 instead of 2, at the others 9 / 2 and 8 / 2.
    assert (one.kindest, one.excess) == (pytest.approx(10**0.5), pytest.approx(2))
    lost = rates.Cell("mlp", 32, "none", {0: [9.0], 2: [math.inf], 4: [1.0]})
    assert rates.shared([first, lost]).excess == pytest.approx(4)


def test_jobs_write_what_they_promise(tmp_path: Path, monkeypatch):
    """Tables whose cells are the numbers of the CSV, and pictures."""
    monkeypatch.setitem(sweeps.TASKS, "photo", TINY)
    monkeypatch.setitem(sweeps.TASKS, "mlp", TINY)
    monkeypatch.setattr(rates, "STEPS", {32: 8})
    monkeypatch.setattr(small_batches, "STEPS", {16: 8})
    monkeypatch.setattr(thinning, "STEPS", {"photo": 8})
    monkeypatch.setattr(thinning, "SCHEDULES", thinning.SCHEDULES[:3])

    def run():
        assert rates.run(("photo",), (32,), ("none", "fan_in"), 1, None, tmp_path) == 0
        assert small_batches.run((16,), ("sgd",), 1, None, tmp_path) == 0
        assert thinning.run(("photo",), 1, None, tmp_path) == 0

    run()
    names = {"rates", "small_batches", "thinning"}
    endings = (".md", ".csv", ".png")
    assert {p.name for p in tmp_path.iterdir()} == {n + e for n in names for e in endings}
    lines = (tmp_path / "rates.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[-1]) for line in lines if ",fan_in," in line]
    assert f"{min(losses):.3g}" in (tmp_path / "rates.md").read_text()

    # Again: all is there, so nothing is trained, and the same tables are written.
    before = {p.name: p.read_text() for p in tmp_path.glob("*.md")}
    for module in (rates, small_batches, thinning):
        monkeypatch.setattr(module, "trainer", lambda *_: None)
    run()
    assert {p.name: p.read_text() for p in tmp_path.glob("*.md")} == before


@pytest.mark.parametrize("module", [rates, small_batches, thinning])
def test_a_damaged_file_is_named(module, tmp_path):
    """Instead of a traceback."""
    (tmp_path / "file.csv").write_text("task,rate\nphoto,fast\n")
    with pytest.raises(DataError, match=r"file\.csv: damaged"):
        module.read(tmp_path / "file.csv")


def test_safe_rates():
    """Up to the first that is a tenth worse than with fresh statistics; a diverged one never."""
    fresh = {0: [1.0], 1: [0.8], 2: [0.7], 3: [math.inf]}
    assert thinning.safe_index(fresh, fresh) == 2
    assert thinning.safe_index({0: [1.09], 1: [0.9], 2: [0.7], 3: [1.0]}, fresh) == 0
    assert thinning.safe_index({0: [1.2], 1: [0.8], 2: [0.7], 3: [1.0]}, fresh) is None


def test_schedules():
    """In which steps statistics are taken."""
    taken = np.flatnonzero(thinning.growing(10, 4).mask(60))
    assert taken[:22].tolist() == [*range(21), 22]
    assert set(np.diff(taken)) == {1, 2, 3, 4}
    assert np.all(np.diff(taken) >= 1)
    assert np.flatnonzero(thinning.every(4, 3).mask(14)).tolist() == [0, 1, 2, 4, 8, 12]
