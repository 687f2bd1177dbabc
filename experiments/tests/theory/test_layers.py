"""Each layer is looked at in what it multiplies, and by its largest eigenvalue over the mean."""

import jax
import numpy as np
import pytest

import jaxnorm
from experiments.studies.tasks import Task
from experiments.theory import job, layers
from experiments.theory.layers import Layer
from experiments.workloads import STUDIED


def test_rows_are_what_a_layer_multiplies() -> None:
    task = Task("", "", channels=(3, 4), widths=(5,), image=(7, 2), halved=False)
    x = np.random.default_rng(0).normal(size=(6, 98)).astype(np.float32)
    params = task.network(None, 2).init(jax.random.key(0), x, train=True)["params"]
    found = layers.inputs_of(task, 2, params, x)
    assert [gate for _, _, gate in found.values()] == ["relu", "relu", "relu", None]
    for name, (rows, z, _) in found.items():
        kernel = params[name]["kernel"]
        if kernel.ndim == 4:  # patches have the channels outside
            kernel = kernel.transpose(2, 0, 1, 3)
        product = rows @ kernel.reshape(rows.shape[1], -1) + params[name]["bias"]
        np.testing.assert_allclose(z, product, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (10.0, 1.0), (0.0, 9.0)])
def test_the_ratio_is_of_what_coordinates_leave(mean: float, scale: float) -> None:
    corners = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * [1, scale] + mean
    z = np.ones((4, 1))
    with jax.enable_x64(True):
        plain = layers.ratio(corners, z, None, None)
        ours = layers.ratio(corners, z, None, jaxnorm.Rule(damping=0, shrinkage=0))
    block = np.mean([np.outer(u, u) for u in np.insert(corners, 0, 1, axis=1)], axis=0)
    values = np.linalg.eigvalsh(block)
    np.testing.assert_allclose(plain, values[-1] / values.mean(), rtol=1e-9)
    np.testing.assert_allclose(ours, 1, rtol=1e-6)


def test_a_task_is_looked_at_before_and_after() -> None:
    with jax.enable_x64(True):
        found = list(layers.look("wine", STUDIED["wine"].load(), (0, 3)))
    assert [(each.step, each.name) for each in found] == [
        (step, f"Dense_{n}") for step in (0, 3) for n in range(3)
    ]
    assert found[0].ratios != found[3].ratios
    assert all(each.ratios["neuronwise"] < each.ratios["plain"] for each in found)


def test_the_table_has_geometric_means() -> None:
    two = [Layer("wine", 0, str(n), 3, {"plain": n, "neuronwise": 1.0}) for n in (2.0, 8.0)]
    (row,) = job.layers_table(two).rows
    assert row == ["wine, 2 x 32", "0", "2", "4", "1", "0.25"]
