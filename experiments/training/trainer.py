"""All runs of one method at once: a `vmap` over rates and seeds of a `scan` over steps.

Letters: R rates, S seeds, T steps, C steps in a chunk, B samples in a minibatch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm
from experiments.methods import MLP, initialize, records
from experiments.options import Plan
from experiments.workloads import Samples, Workload

CHUNKS = 24
"""The progress bar moves about so many times in a method."""


@dataclass(frozen=True)
class Runs:
    """What the runs of a method leave behind.

    Attributes:
        losses: minibatch loss before each step [R, S, T]; inf from the first step on at which it
            was not finite.
        test: test figure [R, S]; not finite for a run that diverged.
        variables: the networks' variables, leading axes [R, S].
        seconds: training time of all these runs together, without compilation.
        compile_seconds: tracing and compilation of the training step.
    """

    losses: np.ndarray
    test: np.ndarray
    variables: Any
    seconds: float
    compile_seconds: float


def train_method(
    model: MLP,
    workload: Workload,
    plan: Plan,
    on_progress: Callable[[int], None] = lambda steps: None,
) -> Runs:
    """Train a network at every rate and seed of a plan.

    Args:
        model: the network.
        workload: data and loss.
        plan: what to do.
        on_progress: called now and then with the number of steps done since, over all runs.
    """
    seeds = jnp.arange(plan.seeds)
    order = np.stack(
        [workload.batches(seed, plan.steps, plan.batch_size) for seed in range(plan.seeds)]
    )
    data = _on_device(workload.train)

    optimizer = partial(_optimizer, plan.optimizer, plan.momentum, records(model.method))
    # The inner axis is the seed, the outer one the rate. Minibatches differ between seeds but not
    # between rates, so that each is read once for all rates.
    start = jax.vmap(jax.vmap(partial(_start, model, optimizer), (None, 0, None)), (0, None, None))
    step = partial(_step, model, workload.loss, optimizer)
    advance = jax.vmap(jax.vmap(partial(_advance, step), (0, None, 0, None)), (0, 0, None, None))
    start, advance = jax.jit(start), _Timed(advance, donate_argnums=0)

    losses, variables = [], []
    for rates in _portions(plan.rates, plan.parallel_rates):
        state = start(rates, seeds, data[0])
        curve = []
        for rows in np.array_split(order, min(CHUNKS, plan.steps), axis=1):
            state, chunk = advance(state, rates, jnp.asarray(rows), data)
            curve.append(np.asarray(chunk))
            on_progress(chunk.size)
        losses.append(np.concatenate(curve, axis=-1))
        variables.append(jax.tree.map(np.asarray, state[0]))
    trained = jax.tree.map(lambda *leaves: np.concatenate(leaves), *variables)
    return Runs(
        losses=until_divergence(np.concatenate(losses)),
        test=_test_figures(model, workload, trained),
        variables=trained,
        seconds=advance.seconds,
        compile_seconds=advance.compile_seconds,
    )


def predict(model: MLP, variables: Any, inputs: np.ndarray) -> np.ndarray:
    """Outputs [N, O] of one trained network for inputs [N, I]."""
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, jnp.asarray(inputs)))


def until_divergence(losses: np.ndarray) -> np.ndarray:
    """Losses [..., T] with inf from the first step on that is not finite."""
    return np.where(np.logical_and.accumulate(np.isfinite(losses), axis=-1), losses, np.inf)


def _start(model, optimizer, rate, seed, inputs):
    """State of a run before its first step: variables and optimizer state."""
    del rate  # it only gives the state its outer axis
    variables = initialize(model, seed, inputs)
    return variables, optimizer(0.0).init(variables["params"])


def _advance(step, state, rate, rows, data):
    """Make the steps whose minibatches are `rows` [C, B]; returns (state, losses [C])."""
    return jax.lax.scan(lambda state, row: step(state, rate, row, data), state, rows)


def _step(model, loss, optimizer, state, rate, row, data):
    """One step of the optimizer on the samples `row` [B]."""
    variables, memory = state
    inputs, targets = (jnp.take(samples, row, axis=0) for samples in data)
    by = {name: variables[name] for name in ("params", "neuron_stats") if name in variables}
    others = {name: tree for name, tree in variables.items() if name not in by}

    def objective(by):
        outputs, changed = model.apply({**by, **others}, inputs, train=True, mutable=list(others))
        return loss(outputs, targets), changed

    (value, others), gradients = jax.value_and_grad(objective, has_aux=True)(by)
    stats = {
        name: jaxnorm.update_statistics(by[name], gradients[name])
        for name in by
        if name == "neuron_stats"
    }
    params = by["params"]
    updates, memory = optimizer(rate).update(gradients["params"], memory, params, **stats)
    params = optax.apply_updates(params, updates)
    return ({"params": params, **stats, **others}, memory), value


def _optimizer(name, momentum, in_coordinates, rate):
    tx = optax.adam(rate) if name == "adam" else optax.sgd(rate, momentum=momentum)
    return jaxnorm.in_neuron_coordinates(tx) if in_coordinates else tx


def _test_figures(model, workload, variables) -> np.ndarray:
    """Test figure [R, S] of networks with leading axes [R, S]."""
    shape = jax.tree.leaves(variables)[0].shape[:2]

    @jax.jit
    def mean_scores(variables, inputs, targets):
        def mean_score(variables):
            outputs = model.apply(variables, inputs, train=False)
            return workload.score(outputs, targets).mean()

        # One network at a time, because the test samples may be many.
        return jax.lax.map(mean_score, variables)

    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), variables)
    means = np.asarray(mean_scores(flat, *_on_device(workload.test)))
    return np.array([workload.test_figure(float(mean)) for mean in means]).reshape(shape)


def _on_device(samples: Samples) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(samples.inputs), jnp.asarray(samples.targets)


def _portions(rates: tuple[float, ...], size: int) -> list[jax.Array]:
    """The rates in portions of at most `size` (0: all together)."""
    size = size or len(rates)
    return [
        jnp.asarray(rates[first : first + size], jnp.float32)
        for first in range(0, len(rates), size)
    ]


class _Timed:
    """A jitted function that keeps its compilation and its running time apart."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.seconds = self.compile_seconds = 0.0
        self._function = jax.jit(function, **options)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments))
        begin = time.perf_counter()
        if shapes not in self._compiled:
            self._compiled[shapes] = self._function.lower(*arguments).compile()
        ready = time.perf_counter()
        result = jax.block_until_ready(self._compiled[shapes](*arguments))
        self.compile_seconds += ready - begin
        self.seconds += time.perf_counter() - ready
        return result
