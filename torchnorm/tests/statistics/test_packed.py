"""`Rule.statistics_dtype`: means and scales in bfloat16, and what is left of them."""

import copy

import numpy as np
import pytest
import torch

from parity_tests.oracle.weighted_samples import batches
from torchnorm import Rule
from torchnorm.optim.layer_coordinates import coordinates_of
from torchnorm.statistics import merging
from torchnorm.tests.statistics.test_tracked import DOUBLE, dense, take, track

#: Of a number whose digits bfloat16 keeps, where some are lost in sums.
FEW = 2.0**-6
#: Which neurons have a bias that may not move.
FIXED = torch.tensor([False, True, True, False])[:, None]


def far_away(given, mean):
    """The batches with another mean."""
    return [(x + mean, g) for x, g in given]


def after(made, given):
    """The statistics with those of one batch more, as behind the first hundred steps."""
    made[0].neuron_stats.set_count(100, 16)
    return track(made, [given])


def packed(**knobs):
    return Rule(statistics_dtype="bfloat16", **knobs)


def close(a, b, within=FEW):
    assert bool(b.isfinite().all())
    assert (a - b).abs().max() <= within * b.abs().max()


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
    found, exact = (
        (track(made, given[:2]), after(made, given[2]))[1]
        for made in (dense(rule, bias=bias) for rule in (packed(scale=scale), Rule(scale=scale)))
    )
    assert found.first is found.second is None
    kept = [value for value in (found.packed_first, found.packed_second) if value is not None]
    assert len(kept) == sum(value is not None for value in (exact.first, exact.second)) > 0
    assert all(value.dtype == torch.bfloat16 for value in kept)
    for fixed in (None, True, FIXED):
        a, b = (merging.coordinates(each, fixed, settles=True) for each in (found, exact))
        close(a.scale, b.scale)
        assert ((a.mean - b.mean) * b.scale).abs().max() <= FEW
    read = [merging.moments(each) for each in (found, exact)]
    close(read[0].sigma, read[1].sigma)
    assert bool(found.packed_first.any()) if bias else found.packed_first is None


def test_a_first_batch_far_from_zero():
    """It is summed about its own mean, where sums about 0 would lose what few digits there are."""
    given = far_away(batches(1), 10.0)
    found, exact = (merging.moments(track(dense(rule), given)) for rule in (packed(), Rule()))
    close(found.sigma, exact.sigma)
    assert ((found.mean - exact.mean) / exact.sigma).abs().max() <= FEW


def test_what_is_lost_stays_small():
    """Written a hundred times, and read as often."""
    (given,) = far_away(batches(1), 50.0)
    each = [dense(rule) for rule in (packed(), Rule())]
    for _ in range(100):
        found, exact = (merging.moments(after(made, given)) for made in each)
    assert ((found.mean - exact.mean) / exact.sigma).abs().max() <= FEW
    close(found.sigma, exact.sigma)


def test_a_batch_that_is_not_finite_changes_nothing():
    good, (x, g) = batches(2)
    x[0, 1], x[1, 2] = np.nan, 1e200
    made = dense(packed())
    before = track(made, [good])
    found = after(made, (x, g))
    for name in ("packed_first", "packed_second", "mass", "layer_first"):
        assert torch.equal(getattr(found, name), getattr(before, name))
    at = merging.coordinates(found, settles=True)
    assert bool((at.mean.isfinite() & at.scale.isfinite()).all())


def test_of_another_rule():
    """What they mean is in their names: loaded into another rule's they are refused."""
    (_, optimizer), (_, other) = dense(packed()), dense()
    for one, another in ((optimizer, other), (other, optimizer)):
        with pytest.raises(ValueError, match=r"neuron_stats: got statistics of .* same entries"):
            one.load_state_dict(another.state_dict())


def test_they_stay_small_and_go_on():
    """Through copies, checkpoints and casts."""
    first, second = batches(2)
    layer, optimizer = dense(packed())
    take(layer, optimizer, *first)
    twin = copy.deepcopy(layer.state_dict()), copy.deepcopy(optimizer.state_dict())
    loaded, restored = dense(packed())
    loaded.load_state_dict(twin[0])
    restored.load_state_dict(twin[1])
    for one in (layer, loaded):
        one.float().double()
        stats = one.neuron_stats.read()
        assert stats.packed_first.dtype == stats.packed_second.dtype == torch.bfloat16
        assert stats.mass.dtype == DOUBLE["dtype"]
    found, again = after((layer, optimizer), second), after((loaded, restored), second)
    for name, value in found.present().items():
        assert torch.equal(value, getattr(again, name))


def test_no_coordinates_are_left_behind():
    """They are made of the packed ones for each step: kept, they would be twice as large."""
    layer, optimizer = dense(packed())
    ages = set()
    for given in batches(30):
        take(layer, optimizer, *given)
        assert not layer.neuron_stats.coordinates
        ages.add(layer.neuron_stats.age)
    assert ages == {1, 2}
    (one,) = optimizer._neuronwise.layers.values()
    made = coordinates_of(one, one.stats.values, {})
    assert made.ready is None
    assert bool((made.at.scale > 0).all())
