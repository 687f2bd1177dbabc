"""What a training step costs beside the plain one: ratios of interleaved timings."""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxnorm

LAYERS = 4


class Shape(NamedTuple):
    """One line of the table: samples (or images), width, rows of the thinned statistics."""

    samples: int
    width: int
    rows: int
    space: int = 0  # 0: dense layers; otherwise 3 x 3 convolutions on square images of this side

    @property
    def name(self) -> str:
        """As the table has it."""
        if self.space:
            return f"conv {self.samples} x {self.space} x {self.space} x {self.width}"
        return f"dense {self.samples} x {self.width}"


SHAPES = (
    Shape(256, 256, 64),
    Shape(1024, 1024, 64),
    Shape(4096, 512, 256),
    Shape(64, 32, 8, space=32),
    Shape(64, 64, 8, space=16),
)


class _Network(nn.Module):
    """Linear layers and ReLUs, under a rule, or the host's with or without BatchNorm."""

    width: int
    convolution: bool = False
    rule: jaxnorm.Rule | None = None
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rule = self.rule and replace(self.rule, gradient="preconditioned")
        for _ in range(LAYERS):
            window = ((3, 3),) if self.convolution else ()
            if rule is None:
                host: Any = nn.Conv if self.convolution else nn.Dense
                x = host(self.width, *window)(x)
            else:
                ours: Any = jaxnorm.linen.Conv if self.convolution else jaxnorm.linen.Dense
                x = ours(self.width, *window, gate="relu", rule=rule)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=False)(x)
            x = nn.relu(x)
        return x


def networks(shape: Shape) -> dict[str, _Network]:
    """What is timed, the plain network first."""
    network = functools.partial(_Network, shape.width, shape.space > 0)
    return {
        "plain": network(),
        "BatchNorm": network(batch_norm=True),
        "BNP": network(rule=jaxnorm.BNP),
        "scale='layer'": network(rule=jaxnorm.Rule(scale="layer")),
        "neuron-wise": network(rule=jaxnorm.NEURONWISE),
        "statistics_rows": network(rule=jaxnorm.Rule(statistics_rows=shape.rows)),
    }


def train_step(network: _Network, shape: Shape) -> Callable[[], Any]:
    """A whole compiled step of SGD with momentum, ready to be called again and again."""
    space = (shape.space, shape.space) if shape.space else ()
    x = jax.random.normal(jax.random.key(0), (shape.samples, *space, shape.width))
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
    for name in networks(SHAPES[0]):
        table.add_column(name, justify="right")
    for shape in track(SHAPES, console=console):
        steps = {name: train_step(net, shape) for name, net in networks(shape).items()}
        cells = {name: f"{ratio:.2f}" for name, ratio in ratios(steps, repeats).items()}
        cells["statistics_rows"] += f" (R={shape.rows})"
        table.add_row(shape.name, *cells.values())
    console.print(table)
    return 0
