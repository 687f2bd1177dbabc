"""`Rule.statistics_dtype`: means and scales in bfloat16, and what is left of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import Rule
from jaxnorm.statistics import merging
from jaxnorm.tests.statistics.test_settled import FIXED, after, close
from jaxnorm.tests.statistics.test_tracked import DOUBLE, moments, record, track
from parity_tests.oracle.weighted_samples import batches

#: Of a number whose digits bfloat16 keeps, where some are lost in sums.
FEW = 2.0**-6


def layer_of(bias=True, **knobs):
    layer = jaxnorm.linen.Dense(4, gate="silu", use_bias=bias, rule=Rule(**knobs), **DOUBLE)
    return layer, layer.init(jax.random.key(0), jnp.zeros((2, 5)))


def far_away(given, mean):
    """The batches with another mean."""
    return [(x + mean, g) for x, g in given]


@pytest.mark.parametrize(
    ("scale", "bias", "mean"),
    [
        ("neuron", True, 0.0),
        ("neuron", True, 1e4),
        ("layer", True, 1e4),
        ("none", True, 1e4),
        ("neuron", False, 0.0),
    ],
)
def test_few_digits_are_enough(scale, bias, mean):
    """Of the distance from the layer's mean, in sigmas, however large the mean is."""
    given = far_away(batches(3), mean)
    packed, whole = (
        layer_of(bias, scale=scale, statistics_dtype=dtype) for dtype in ("bfloat16", None)
    )
    found, exact = (
        after(*made, track(*made, given[:2]), given[2])["statistics"] for made in (packed, whole)
    )
    assert found.first is found.second is None
    kept = [value for value in (found.packed_first, found.packed_second) if value is not None]
    assert len(kept) == sum(value is not None for value in (exact.first, exact.second)) > 0
    assert all(value.dtype == jnp.bfloat16 for value in kept)
    for fixed in (None, True, FIXED):
        a, b = (merging.coordinates(each, fixed) for each in (found, exact))
        assert close(a.scale, b.scale, FEW)
        assert close(a.varies, b.varies)
        assert np.abs((a.mean - b.mean) * b.scale).max() <= FEW
    read = [merging.moments(each) for each in (found, exact)]
    assert close(read[0].sigma, read[1].sigma, FEW)
    assert bool(jnp.any(found.packed_first != 0)) if bias else found.packed_first is None


def test_a_first_batch_far_from_zero():
    """It is summed about its own mean, where sums about 0 would lose what few digits there are."""
    given = far_away(batches(1), 10.0)
    found, exact = (
        moments(track(*layer_of(statistics_dtype=dtype), given)) for dtype in ("bfloat16", None)
    )
    assert close(found.sigma, exact.sigma, FEW)
    assert np.abs((found.mean - exact.mean) / exact.sigma).max() <= FEW


def test_what_is_lost_stays_small():
    """Written many times, and read as often."""
    (given,) = far_away(batches(1), 50.0)
    packed, whole = (layer_of(statistics_dtype=dtype) for dtype in ("bfloat16", None))
    found, exact = (track(*made, [given]) for made in (packed, whole))
    for _ in range(25):
        found, exact = after(*packed, found, given), after(*whole, exact, given)
    a, b = moments(found), moments(exact)
    assert np.abs((a.mean - b.mean) / b.sigma).max() <= FEW
    assert close(a.sigma, b.sigma, FEW)


def test_a_batch_that_is_not_finite_changes_nothing():
    good, (x, g) = batches(2)
    x[0, 1], x[1, 2] = np.nan, 1e200
    layer, variables = layer_of(statistics_dtype="bfloat16")
    before = track(layer, variables, [good])
    found = after(layer, variables, before, (x, g))["statistics"]
    for name in ("packed_first", "packed_second", "mass", "layer_first"):
        assert bool(jnp.all(getattr(found, name) == getattr(before["statistics"], name)))
    at = merging.coordinates(found)
    assert bool(jnp.all(jnp.isfinite(at.mean) & jnp.isfinite(at.scale)))


def test_restored_with_more_digits():
    """What they mean is in their names, not in their dtype: whoever casts all arrays is right."""
    first, second = batches(2)
    layer, variables = layer_of(statistics_dtype="bfloat16")
    stats = track(layer, variables, [first])
    cast = jax.tree.map(lambda value: value.astype(jnp.float64), stats)
    assert close(moments(cast), moments(stats))
    step = jax.jit(lambda s: jaxnorm.update_statistics(s, record(layer, variables, s, *second)))
    assert close(moments(step(cast)), moments(step(stats)), FEW)


def test_of_another_rule():
    layer, _ = layer_of(statistics_dtype="bfloat16")
    other, variables = layer_of()
    ((x, g),) = batches(1)
    stats = jaxnorm.linen.init_statistics(layer, variables, jnp.asarray(x))
    with pytest.raises(ValueError, match=r"neuron_stats: got .*packed_first.* make new ones"):
        record(other, variables, stats, x, g)


def test_switched_off_entries_have_no_mean():
    """Of the kernel; the distance of 0 from the layer's mean would not be 0 again."""
    x = np.random.default_rng(0).standard_normal((8, 6, 2)) + 3
    mask = jnp.ones((3, 2, 4)).at[0].set(0.0)
    rule = Rule(statistics_dtype="bfloat16")
    layer = jaxnorm.linen.Conv(4, (3,), mask=mask, gate="silu", rule=rule, **DOUBLE)
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    stats = track(layer, variables, [(x, np.ones((8, 6, 4)))])
    mean = np.broadcast_to(moments(stats).mean, mask.shape)
    assert not mean[0].any()
    assert (mean[1:] > 2).all()
