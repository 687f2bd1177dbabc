"""The workloads: one interface, honest splits, and figures that hand calculation confirms."""

from pathlib import Path
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import ConfigError
from experiments.options import WorkloadName
from experiments.workloads import WORKLOADS, Samples, Workload
from experiments.workloads.base import split
from experiments.workloads.photo import Photo, psnr, shrink


@pytest.fixture(params=sorted(WORKLOADS))
def workload(request: pytest.FixtureRequest, data_dir: Path) -> Workload:
    """Each workload; Fashion-MNIST from a folder of noise."""
    return WORKLOADS[request.param].load(data_dir)


def test_registry_matches_command_line() -> None:
    """The names that tyro offers are those of the registry."""
    assert set(get_args(WorkloadName)) == set(WORKLOADS)


def test_samples_are_float32_and_scaled(workload: Workload) -> None:
    """Inputs [N, I] are float32 within [-1, 1] and use the range."""
    for samples in (workload.train, workload.test):
        assert samples.inputs.ndim == 2
        assert samples.inputs.dtype == np.float32
        assert np.abs(samples.inputs).max() == pytest.approx(1, abs=0.05)
        assert samples.targets.dtype in (np.float32, np.int32)


def test_train_and_test_share_no_sample(workload: Workload) -> None:
    """No input of the test part is among those that are learned from."""
    if workload.name == "digits":
        assert len(workload.train) + len(workload.test) == 1797
    train = {row.tobytes() for row in workload.train.inputs}
    assert train
    assert not train & {row.tobytes() for row in workload.test.inputs}


def test_right_outputs_are_best(workload: Workload) -> None:
    """Outputs that hit the targets have loss 0 and the best score; others are worse."""
    targets = jnp.asarray(workload.train.targets[:8])
    if targets.ndim == 1:
        right, best = 100.0 * jnp.eye(workload.outputs)[targets], 1.0
        wrong = jnp.roll(right, 1, axis=1)
    else:
        right, best = targets, 0.0
        wrong = targets + 1
    assert right.shape == (8, workload.outputs)
    assert workload.loss(right, targets) == pytest.approx(0, abs=1e-6)
    assert workload.loss(wrong, targets) > 0.5
    np.testing.assert_array_equal(workload.score(right, targets), np.full(8, best))
    assert np.all(np.asarray(workload.score(wrong, targets)) != best)


def test_score_of_broken_network_is_not_a_number(workload: Workload) -> None:
    """A network of NaN is not taken for one that always says class 0."""
    outputs = jnp.full((8, workload.outputs), jnp.nan)
    targets = jnp.zeros_like(jnp.asarray(workload.train.targets[:8]))
    assert np.isnan(workload.score(outputs, targets)).all()


def test_batches_depend_on_the_seed_alone(workload: Workload) -> None:
    """The same seed gives the same minibatches, another seed other ones."""
    first = workload.batches(0, 7, 16)
    assert first.shape == (7, 16)
    assert first.dtype == np.int32
    np.testing.assert_array_equal(first, workload.batches(0, 7, 16))
    np.testing.assert_array_equal(first[:3], workload.batches(0, 3, 16))
    assert (first != workload.batches(1, 7, 16)).any()


def test_batches_go_through_the_data() -> None:
    """Within an epoch no sample comes twice; the next epoch has another order."""
    digits = WORKLOADS["digits"].load()
    per_epoch = len(digits.train) // 100
    order = digits.batches(3, 2 * per_epoch, 100)
    for epoch in (order[:per_epoch], order[per_epoch:]):
        assert len(np.unique(epoch)) == epoch.size
        assert epoch.max() < len(digits.train)
    assert (order[:per_epoch] != order[per_epoch:]).any()


def test_batch_larger_than_the_data(workload: Workload) -> None:
    """The message names the option and the limit."""
    with pytest.raises(ConfigError, match=f"--batch-size.*{len(workload.train)}"):
        workload.batches(0, 1, len(workload.train) + 1)


def test_psnr_by_hand() -> None:
    """A mean squared error of 0.01 is 20 dB; the test and train figures use it."""
    photo = Photo(np.zeros((4, 5, 3)))
    assert psnr(0.01) == pytest.approx(20)
    assert photo.test_figure(0.001) == pytest.approx(30)
    assert photo.train_figure(0.1) == ("train PSNR (dB)", pytest.approx(10))


def test_shrink_by_hand() -> None:
    """Blocks are averaged, what is left over is cut off."""
    image = np.arange(15, dtype=float).reshape(3, 5, 1)
    np.testing.assert_array_equal(shrink(image, 2)[..., 0], [[3, 5]])


def test_picture_is_the_right_way_up() -> None:
    """A network that knows the color of every point gives the photograph back."""
    photograph = np.random.default_rng(0).random((3, 4, 3)).astype(np.float32)
    photo = Photo(photograph)

    def predict(points: np.ndarray) -> np.ndarray:
        columns = np.rint((points[:, 0] + 1) / 2 * 3).astype(int)
        rows = np.rint((points[:, 1] + 1) / 2 * 2).astype(int)
        return photograph[rows, columns]

    np.testing.assert_array_equal(photo.picture(predict), photograph)
    np.testing.assert_array_equal(photo.original(), photograph)
    assert photo.picture(lambda points: predict(points) + 9).max() == 1


def test_photograph_is_a_real_one() -> None:
    """The default is scikit-learn's picture, a quarter as wide and as high."""
    photo = Photo.load()
    assert photo.photograph.shape == (106, 160, 3)
    assert 0.1 < photo.photograph.std() < 0.5


def test_split_parts_everything_once() -> None:
    """Each sample is in one part, with its own target, and always in the same one."""
    samples = Samples(np.arange(50.0)[:, None], np.arange(50))
    train, test = split(samples, 0.2)
    assert (len(train), len(test)) == (40, 10)
    assert sorted([*train.targets, *test.targets]) == list(range(50))
    np.testing.assert_array_equal(train.inputs[:, 0], train.targets)
    np.testing.assert_array_equal(split(samples, 0.2)[1].targets, test.targets)
    assert test.targets.max() > 12  # not simply the first ones
