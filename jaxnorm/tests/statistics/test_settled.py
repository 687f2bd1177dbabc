"""Merged statistics that are coordinates: those of their batch, smoothed, in several steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnorm
from jaxnorm import Rule
from jaxnorm.rule import due_steps
from jaxnorm.statistics import merging
from jaxnorm.statistics.moments import finite_or_plain
from jaxnorm.statistics.tracked import of_sums
from jaxnorm.tests import nets
from jaxnorm.tests.nets import error, make
from jaxnorm.tests.statistics.test_tracked import DOUBLE, moments, record, track
from parity_tests.oracle.weighted_samples import batches
from parity_tests.tolerances import GATE, LOCK_STEP

RULES = (
    Rule(),
    Rule(statistics_rows=4),
    Rule(scale="layer"),
    Rule(scale="none"),
    Rule(weighting="signed", scale="layer"),
    Rule(weighting="uniform"),
    Rule(weighting="error"),
    Rule(weighting="gate_squared", step_size="standardized", epsilon=0.1),
)
#: How one neuron's sums go wrong, where its weights are of the gradient.
BAD = ("NaN", "overflow")
#: Which neurons have a bias that may not move.
FIXED = jnp.array([[False, True, True, False]])


def layer_of(rule, bias=True):
    layer = jaxnorm.linen.Dense(4, gate="silu", use_bias=bias, rule=rule, **DOUBLE)
    return layer, layer.init(jax.random.key(0), jnp.zeros((2, 5)))


def spoiled(how):
    """A batch with an input that does not vary, which in one neuron counts for too much."""
    ((x, g),) = batches(1)
    x[:, 1] = 3.0
    if how == "NaN":
        g[2, 1] = np.nan
    elif how == "overflow":
        g[:, 1] *= 1e160
    return x, g


@pytest.mark.parametrize(
    ("rule", "how"),
    [*((rule, "well") for rule in RULES), *((Rule(weighting="error"), how) for how in BAD)],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_coordinates_are_those_of_the_sums(rule, bias, how):
    layer, variables = layer_of(rule, bias)
    x, g = spoiled(how)
    stats = jaxnorm.linen.init_statistics(layer, variables, jnp.asarray(x))

    @jax.jit
    def both(stats):
        batch = record(layer, variables, stats, x, g)
        merged = jaxnorm.update_statistics(stats, batch)["statistics"]
        sums = batch["statistics"].counted()
        found = [merging.coordinates(merged, fixed) for fixed in (None, True, FIXED)]
        centered, about_zero = (
            finite_or_plain(of_sums(sums, centered=each).moments).coordinates
            for each in (bias, False)
        )
        some = jax.tree.map(
            lambda *each: jnp.where(FIXED, *each),
            about_zero._replace(varies=jnp.ones_like(about_zero.varies)),
            centered,
        )
        read = [
            [merging.moments(each, centered=centered) for centered in (bias, False)]
            for each in (merged, sums)
        ]
        return found, (centered, about_zero, some), read

    found, expected, (merged, sums) = both(stats)
    for each, right in zip(found, expected, strict=True):
        assert close(each[:2], right[:2])
    for number in (0, 2):
        assert close(found[number].varies, expected[number].varies)
    for each, right in zip(merged, sums, strict=True):
        # (About which the sums of such a neuron were taken is of no use.)
        names = ("mean", "sigma", "varies") + ("offset",) * (how == "well")
        for name in names:
            assert close(getattr(each, name), getattr(right, name))


def close(actual, expected, within=GATE["float64"]):
    """Each array but for rounding, which may be broadcast, or 0."""

    def one(a, b):
        a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
        return np.isfinite(b).all() and np.abs(a - b).max() <= within * np.abs(b).max()

    return jax.tree.all(jax.tree.map(one, actual, expected))


def after(layer, variables, stats, given):
    """The statistics with those of one batch more, as behind the first hundred steps."""
    old = {
        "statistics": stats["statistics"].with_scalars(
            steps=jnp.asarray(100.0), age=jnp.asarray(16.0)
        )
    }
    return jaxnorm.update_statistics(old, record(layer, variables, old, *given))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_smoothing_by_hand(share):
    """Of mean and sigma^2; what has varied may vary again, until that is forgotten."""
    first, second = batches(2)
    second[0][:, 1] = 3.0
    layer, variables = layer_of(Rule(smoothing=share))
    bare, _ = layer_of(nets.OF_THE_BATCH)
    old, new = (moments(track(bare, variables, [given])) for given in (first, second))
    assert close(moments(track(layer, variables, [first])), old)
    found = moments(after(layer, variables, track(layer, variables, [first]), second))
    rest = 1 - share
    assert error(found.mean, share * old.mean + rest * new.mean) <= GATE["float64"]
    assert error(found.sigma**2, share * old.sigma**2 + rest * new.sigma**2) <= GATE["float64"]
    assert found.varies.all()
    stats = track(layer, variables, [first])
    for _ in range(60):
        stats = after(layer, variables, stats, second)
    varies = moments(stats).varies
    assert not varies[1].any()
    assert varies[np.array([0, 2, 3, 4])].all()


# --- Several steps --------------------------------------------------------------------------------

STEPS = 26
ADAM = jaxnorm.in_neuron_coordinates(optax.adam(0.03))
MANY = Rule(statistics_every=4, smoothing=0.0)


def parts():
    x, y = nets.data(STEPS * 6)
    return x.reshape(STEPS, 6, -1), y.reshape(STEPS, 6, -1)


def run(net, carry):
    """(state, params, stats) after all steps."""
    return jax.lax.scan(lambda carry, part: (net.step(ADAM, *carry, *part), None), carry, parts())[
        0
    ]


def start(net):
    return ADAM.init(net.params), net.params, net.stats


@pytest.mark.parametrize("kind", ["linen", "nnx converted"])
def test_one_program_is_as_good_as_two(kind):
    """One that takes statistics or not, and one that always does beside one that never does."""
    net, every = make(kind, MANY), make(kind, Rule(statistics_every=1))

    def step(carry, part, take):
        state, params, stats = carry
        grads, batch = every.grads(params, stats, *part)
        if not take:
            batch = jax.tree.map(jnp.zeros_like, batch)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, state = ADAM.update(grads, state, params, neuron_stats=stats)
        return state, optax.apply_updates(params, updates), stats

    step, carry = jax.jit(step, static_argnums=2), start(every)
    due = due_steps(STEPS, 4)
    assert not all(due)
    for take, *part in zip(due, *parts(), strict=True):
        carry = step(carry, part, take)
    found = jax.jit(lambda carry: run(net, carry))(start(net))
    assert error(found[1], carry[1]) <= LOCK_STEP
    assert close(jax.tree.leaves(found[0]), jax.tree.leaves(carry[0]), LOCK_STEP)


def test_seeds_mapped_are_seeds_one_by_one():
    """Also where one is due and the other is not."""
    net = make("linen", MANY)
    params = [jax.tree.map(lambda a, c=c: a * c, net.params) for c in (1.0, 1.5)]
    many = [net.stats, at_step(net.stats, 40)]
    each = [(ADAM.init(p), p, s) for p, s in zip(params, many, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    found = jax.jit(jax.vmap(lambda carry: run(net, carry)))(stacked)
    alone = jax.jit(lambda carry: run(net, carry))
    for number, carry in enumerate(each):
        one, expected = jax.tree.map(lambda a, n=number: a[n], found), alone(carry)
        assert error(one[1], expected[1]) <= LOCK_STEP
        assert close(one[2], expected[2], LOCK_STEP)


def at_step(stats, steps):
    return {
        name: {"statistics": each["statistics"].with_scalars(steps=jnp.asarray(float(steps)))}
        for name, each in stats.items()
    }
