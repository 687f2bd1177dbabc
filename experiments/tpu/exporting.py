"""Steps as files that TPUs, CUDA and CPUs can run, without any of this code."""

from pathlib import Path

import jax
import numpy as np

from experiments.bench.methods import Method
from experiments.bench.networks import Network
from experiments.bench.steps_jax import make_state, train_step

PLATFORMS = ("tpu", "cuda", "cpu")


def export(network: Network, method: Method, dtype: str, path: Path) -> float:
    """Write a step, from arrays to arrays; read it, run it on the CPU and compare.

    Args:
        network: see there.
        method: see there.
        dtype: in which the network computes.
        path: of the file.

    Returns:
        The largest difference, as a part of the largest number in the same array.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = network.input_shape, network.output_shape
        x, y = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False))
        state = jax.jit(lambda key, x: make_state(network, method, dtype, key, x))(keys[2], x)
        arrays, tree = jax.tree.flatten((state, x, y))

        @jax.jit
        def step(*arrays: jax.Array) -> list[jax.Array]:
            return jax.tree.leaves(train_step(*jax.tree.unflatten(tree, arrays)))

        path.write_bytes(jax.export.export(step, platforms=PLATFORMS)(*arrays).serialize())
        found = jax.export.deserialize(bytearray(path.read_bytes())).call(*arrays)
        pairs = zip(found, step(*arrays), strict=True)
        return max(_difference(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if np.array_equal(found, expected):
        return 0.0
    return float(np.max(abs(found - expected)) / np.max(abs(expected)))
