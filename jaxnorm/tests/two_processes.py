"""One of the processes of test_distributed.py: trains on its share of the batch.

    python -m jaxnorm.tests.two_processes PORT RANK RESULT [dies]

With "dies" the last process kills itself after the first step.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm

PROCESSES, DEVICES = 2, 2  # devices of each process
STEPS, RATE = 3, 0.05
ROWS = 16
#: How long the others may go on without a sign of life from one of them, in seconds.
HEARTBEAT = 3


class Net(nn.Module):
    """A convolution and a dense layer, with bias, ReLU and GELU."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [N, 6, 6, 2] to 3 numbers."""
        kwargs: dict[str, Any] = {
            "param_dtype": jnp.float64,
            "axis_name": self.axis_name,
            "rule": jaxnorm.Rule(gradient="preconditioned"),
        }
        x = nn.relu(jaxnorm.linen.Conv(4, (3, 3), strides=2, gate="relu", **kwargs)(x))
        x = x.reshape(x.shape[0], -1)
        return nn.gelu(jaxnorm.linen.Dense(3, gate="gelu", **kwargs)(x))


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Images of unlike channels, and targets."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 6, 6, 2)) * [1, 4] + [0, 3]
    return x, rng.normal(size=(ROWS, 3))


def loss(params: Any, x: Any, y: Any, axis_name: str | None = None) -> jax.Array:
    """The mean over the whole batch: what each share adds to it."""
    z = Net(axis_name).apply({"params": params}, x)
    return jnp.sum((z - y) ** 2) / ROWS


def sgd(params: Any, gradient: Any) -> Any:
    """One step."""
    return jax.tree.map(lambda p, g: p - RATE * g, params, gradient)


def step(params: Any, x: Any, y: Any) -> Any:
    """For arrays of any sharding: nothing is said about the devices."""
    return sgd(params, jax.grad(loss)(params, x, y))


def mapped_step(mesh: Any, axis_name: str | None) -> Any:
    """The same with `jax.shard_map`: statistics over axis_name, or local."""

    def local(params, x, y):
        # JAX adds the gradients of what is replicated over the shards.
        return sgd(params, jax.grad(loss)(params, x, y, axis_name))

    shards = (P(), P("data"), P("data"))
    return jax.shard_map(local, mesh=mesh, in_specs=shards, out_specs=P())


def initial() -> Any:
    """The same parameters in every process."""
    rng = np.random.default_rng(1)
    shapes = {"Conv_0": (3, 3, 2, 4), "Dense_0": (36, 3)}
    return {
        name: {"kernel": 0.2 * rng.normal(size=shape), "bias": rng.normal(size=shape[-1])}
        for name, shape in shapes.items()
    }


def train(step: Any, params: Any, x: Any, y: Any) -> Any:
    """Parameters after a few steps."""
    for _ in range(STEPS):
        params = step(params, x, y)
    return params


def main(port: str, rank: int, result: str, dies: bool) -> None:
    """What each process does; the first writes the results."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(
        f"127.0.0.1:{port}", PROCESSES, rank, heartbeat_timeout_seconds=HEARTBEAT
    )
    mesh = jax.make_mesh((PROCESSES * DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x, y = (jax.make_array_from_callback(a.shape, rows, a.__getitem__) for a in batch())
    params = jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, whole, a.__getitem__), initial()
    )
    steps = {
        "jit": jax.jit(step),
        "shard_map": jax.jit(mapped_step(mesh, "data")),
        "local": jax.jit(mapped_step(mesh, None)),
    }
    if dies:
        params = jax.block_until_ready(steps["jit"](params, x, y))
        print("first step done", flush=True)
        if rank == PROCESSES - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            params = jax.block_until_ready(steps["jit"](params, x, y))
    trained = {name: train(run, params, x, y) for name, run in steps.items()}
    if rank == 0:
        leaves = {
            f"{name} {k}": np.asarray(leaf.addressable_data(0))
            for name, tree in trained.items()
            for k, leaf in enumerate(jax.tree.leaves(tree))
        }
        np.savez(result, allow_pickle=False, **leaves)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], "dies" in sys.argv[4:])
