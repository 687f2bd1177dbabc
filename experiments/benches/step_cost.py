"""What a training step costs beside the plain one: ratios of interleaved timings."""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jaxnorm
from experiments.networks.layers import batch_norm
from experiments.networks.mlp import MLP
from experiments.options import StepCostOptions
from experiments.report.progress import Progress, make_console
from experiments.report.tables import Table

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

    @property
    def work(self) -> float:
        """Products in a step."""
        return self.samples * self.width**2 * (9 * self.space**2 if self.space else 1)


SHAPES = (
    Shape(256, 256, 64),
    Shape(1024, 1024, 64),
    Shape(4096, 512, 256),
    Shape(64, 32, 8, space=32),
    Shape(64, 64, 8, space=16),
)


def networks(shape: Shape) -> dict[str, MLP]:
    """What is timed, the plain network first."""
    window = (3, 3) if shape.space else ()
    network = functools.partial(MLP, shape.width, LAYERS, window=window)
    rules = {
        "BNP": jaxnorm.BNP,
        "scale='layer'": jaxnorm.Rule(scale="layer"),
        "neuron-wise": jaxnorm.NEURONWISE,
        "statistics_rows": jaxnorm.Rule(statistics_rows=shape.rows),
    }
    return {
        "plain": network(),
        "BatchNorm": network(normalizer=batch_norm),
        **{n: network(rule=replace(r, gradient="preconditioned")) for n, r in rules.items()},
    }


def train_step(network: MLP, shape: Shape) -> Callable[[], Any]:
    """A whole compiled step of SGD with momentum, ready to be called again and again."""
    space = (shape.space, shape.space) if shape.space else ()
    x = jax.random.normal(jax.random.key(0), (shape.samples, *space, shape.width))
    variables = network.init(jax.random.key(1), x, train=True)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    tx = optax.sgd(0.01, momentum=0.9)

    def loss(params: Any) -> jax.Array:
        z, _ = network.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
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


def ratios(
    steps: dict[str, Callable[[], Any]], repeats: int, after_turn: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median ratio of each step's time to that of the plain step in the same turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
        after_turn()
    plain = np.array(seconds["plain"])
    return {name: float(np.median(np.array(taken) / plain)) for name, taken in seconds.items()}


def run(options: StepCostOptions, console: Console | None = None) -> int:
    """Time every network at every shape, taking turns, and print one table of ratios.

    Args:
        options: see `StepCostOptions`.
        console: where to print; None: the terminal.

    Returns:
        The exit status: 0, or 130 after an interruption; the table has what was timed.
    """
    console = make_console(console)
    rows, status, repeats = [], 0, options.repeats
    try:
        with Progress(sum(shape.work for shape in SHAPES) * repeats, console) as progress:
            for shape in SHAPES:
                progress.describe(shape.name)
                steps = {name: train_step(net, shape) for name, net in networks(shape).items()}
                turn = functools.partial(progress.advance, shape.work)
                cells = {n: f"{r:.2f}" for n, r in ratios(steps, repeats, turn).items()}
                cells["statistics_rows"] += f" (R={shape.rows})"
                rows.append([shape.name, *cells.values()])
    except KeyboardInterrupt:
        console.print(f"Stopped after {len(rows)} of {len(SHAPES)} shapes.")
        status = 130
    title = f"time of a training step, {LAYERS} layers, plain = 1"
    console.print(Table(["samples x width", *networks(SHAPES[0])], rows, title))
    return status
