"""What a training step costs beside the plain one: ratios of interleaved timings."""

import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxnorm

SHAPES = ((256, 256, 64), (1024, 1024, 64), (4096, 512, 256))
"""(samples, width, rows of the thinned statistics)."""

LAYERS = 4


class _Network(nn.Module):
    """Dense layers and ReLUs, under a rule, or the host's with or without BatchNorm."""

    width: int
    rule: jaxnorm.Rule | None = None
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(LAYERS):
            if self.rule is None:
                x = nn.Dense(self.width)(x)
            else:
                x = jaxnorm.linen.Dense(self.width, gate="relu", rule=self.rule)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=False)(x)
            x = nn.relu(x)
        return x


def networks(width: int, rows: int) -> dict[str, _Network]:
    """What is timed, the plain network first."""
    return {
        "plain": _Network(width),
        "BatchNorm": _Network(width, batch_norm=True),
        "BNP": _Network(width, rule=jaxnorm.BNP),
        "scale='layer'": _Network(width, rule=jaxnorm.Rule(scale="layer")),
        "neuron-wise": _Network(width, rule=jaxnorm.NEURONWISE),
        "statistics_rows": _Network(width, rule=jaxnorm.Rule(statistics_rows=rows)),
    }


def train_step(network: _Network, samples: int) -> Callable[[], Any]:
    """A whole compiled step of SGD with momentum, ready to be called again and again."""
    x = jax.random.normal(jax.random.key(0), (samples, network.width))
    variables = network.init(jax.random.key(1), x)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    tx = optax.sgd(0.01, momentum=0.9)

    def loss(params: Any) -> jax.Array:
        z, _ = network.apply({"params": params, **rest}, x, mutable=["batch_stats"])
        return jnp.mean((z - 1) ** 2)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    carry = [params, tx.init(params)]

    def run() -> None:
        carry[:] = jax.block_until_ready(step(*carry))

    run()  # compiles
    return run


def ratios(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median ratio of each step's time to that of the plain step in the same turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    plain = np.array(seconds["plain"])
    return {name: float(np.median(np.array(taken) / plain)) for name, taken in seconds.items()}


def run(repeats: int, console: Console | None = None) -> int:
    """Time every network at every shape, taking turns, and print one table of ratios.

    Args:
        repeats: how often each step is timed; the median counts.
        console: where to print; None: the terminal.

    Returns:
        The exit status.
    """
    # Not on a terminal, rich assumes 80 columns and would cut the table.
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"time of a training step, {LAYERS} layers, plain = 1")
    table.add_column("samples x width")
    for shape, (samples, width, rows) in enumerate(track(SHAPES, console=console)):
        steps = {n: train_step(net, samples) for n, net in networks(width, rows).items()}
        found = ratios(steps, repeats)
        if shape == 0:
            for name in found:
                table.add_column(name, justify="right")
        cells = {name: f"{ratio:.2f}" for name, ratio in found.items()}
        cells["statistics_rows"] += f" (R={rows})"
        table.add_row(f"{samples} x {width}", *cells.values())
    console.print(table)
    return 0
