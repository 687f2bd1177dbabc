"""What the plots show, read from the figures themselves."""

import math

import numpy as np
import pytest

from experiments.options import CompareConfig
from experiments.records.runs import make_records
from experiments.report.plots import learning_curves, picture_grid, rate_sensitivity
from experiments.report.summary import MethodSummary, summarize
from experiments.training.trainer import Runs
from experiments.workloads.photo import Photo

PHOTO = Photo(np.random.default_rng(0).random((4, 6, 3)))
PLAN = CompareConfig(steps=40, rates=(0.1, 0.2, 0.4, 0.8), seeds=2, window=4).resolved()


@pytest.fixture
def summary() -> MethodSummary:
    """Best at 0.2; at 0.4 it ends above its first loss, at 0.8 a seed diverges."""
    falling = np.geomspace(1, 0.1, 40)
    losses = np.stack([[falling, falling * 1.5]] * 4)
    losses[1] /= 2
    losses[2, :, 1:] = 5
    losses[3, 1, 20:] = math.inf
    runs = Runs(losses, np.full((4, 2), 20.0), None, seconds=1.0, compile_seconds=1.0)
    (summary,) = summarize(make_records("bnp", "key", PHOTO, PLAN, runs, {}))
    assert summary.best == 0.2
    return summary


def test_rates_that_failed_are_in_the_strip(summary: MethodSummary) -> None:
    """Crosses where it failed, a curve over the others, a filled marker at the best."""
    strip, axes = rate_sensitivity([summary], PHOTO, PLAN).axes
    assert sorted(float(line.get_xdata()[0]) for line in strip.lines) == [0.4, 0.8]
    curve = axes.containers[0].lines[0]
    np.testing.assert_array_equal(curve.get_xdata(), [0.1, 0.2])
    heights = np.asarray(curve.get_ydata(), float)
    np.testing.assert_allclose(heights, [f.mean for f in summary.finals.values()][:2])
    assert curve.get_markerfacecolor() == "white"
    (best,) = [line for line in axes.lines if line.get_markersize() == 9]
    assert list(best.get_xdata()) == [0.2]
    assert best.get_markerfacecolor() != "white"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1", "0.2", "0.4", "0.8"]


def test_without_failures_there_is_no_strip(summary: MethodSummary) -> None:
    """An empty strip would only take room."""
    object.__setattr__(summary, "lost", ())
    summary.finals.pop(0.4)
    assert len(rate_sensitivity([summary], PHOTO, PLAN).axes) == 1


def test_learning_curve_is_the_running_mean(summary: MethodSummary) -> None:
    """Of the best rate, mean over the seeds; target and both axes are labeled."""
    (axes,) = learning_curves([summary], PHOTO, PLAN).axes
    losses = np.mean([run["curve"] for run in summary.runs], axis=0)
    curve = axes.lines[0].get_ydata()
    assert curve[10] == pytest.approx(losses[7:11].mean())
    assert np.isnan(curve[:3]).all()
    assert "target 0.0125" in [text.get_text() for text in axes.texts]
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "step"
    assert "mean squared error" in axes.get_ylabel()
    assert axes.get_legend().get_texts()[0].get_text() == "BNP, rate 0.2"
    low, high = axes.get_ylim()
    assert low <= 0.0125 < curve[-1] < high


def test_pictures_stand_side_by_side(summary: MethodSummary) -> None:
    """The photograph first, then each method with its figure."""
    painted = np.zeros((4, 6, 3))
    axes = picture_grid([summary], PHOTO, PHOTO.photograph, {"bnp": painted}).axes
    assert [one.get_title() for one in axes] == ["photograph", "BNP: 20.0"]
    np.testing.assert_array_equal(axes[0].images[0].get_array(), PHOTO.photograph)
    np.testing.assert_array_equal(axes[1].images[0].get_array(), painted)
    summary.runs[0]["test"] = None
    axes = picture_grid([summary], PHOTO, PHOTO.photograph, {"bnp": painted}).axes
    assert axes[1].get_title() == "BNP: diverged"
