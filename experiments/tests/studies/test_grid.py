"""The search for a best rate: where it stops."""

import math

import numpy as np
import pytest

from experiments.studies.grid import best_index, rate_of, search


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
    assert best_index(finals) == best
    assert min(finals) <= best - 2
    assert max(finals) >= best + 2
    assert len(tried) == len(set(tried)) == len(finals)
    assert list(finals) == list(range(min(finals), max(finals) + 1))


def test_search_needs_no_rate_above_one_that_diverges():
    """Above the best rate a diverged neighbor is enough; where all diverge it goes down."""
    train, tried = bowl(50, diverges=rate_of(-14))
    finals = search(train, 1.0)
    assert best_index(finals) == -15
    assert max(tried) <= rate_of(2) * 1.001


def test_search_goes_up_where_rates_are_too_small_to_learn():
    """Of which no loss is below its first one."""
    train, _ = bowl(6)

    def learning(rates):
        return np.where(np.array(rates)[:, None] < rate_of(3.5), math.inf, train(rates))

    assert best_index(search(learning, 1.0)) == 6


def test_search_gives_up():
    """Nothing trains at any rate."""
    finals = search(lambda rates: np.full((len(rates), 1), math.inf), 1.0, most=12)
    assert len(finals) == 12
    assert best_index(finals) is None
