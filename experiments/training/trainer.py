"""Many runs of one network at once: a `vmap` over knobs and seeds of a `scan` over steps.

Letters: K knobs (a rate and what goes with it), S seeds, T steps, C steps in a chunk, B samples in
a minibatch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm
from experiments.workloads import Samples, Workload
from jaxnorm.statistics.beside_gradients import as_asked, asked_for
from jaxnorm.statistics.tracked import Statistics

CHUNKS = 24
"""The progress moves at most so many times in a training."""


DIFFERENTIATED = ("params", "neuron_stats", "backward_stats")
"""The collections by which the loss is; the last one is `OnlineNorm`'s."""


class Knobs(NamedTuple):
    """In what runs that are trained together differ; what is None stays as the network has it.

    Attributes:
        rate: [K].
        decay: of the statistics, [K].
        taken: in which steps statistics are taken, [K, T]; in the others they are left as they are.
            Whatever the schedule of the rule.
        relative: to which power sigma is divided by its root mean square, [K]; with
            `Rule(step_size="plain")`, whose power is 1.
    """

    rate: Any
    decay: Any = None
    taken: Any = None
    relative: Any = None


class Judge(NamedTuple):
    """What the networks are asked after the last step: the verdict on their outputs for samples."""

    samples: Samples
    verdict: Callable[[jax.Array, jax.Array], jax.Array]


class Runs(NamedTuple):
    """What runs leave behind.

    Attributes:
        losses: minibatch loss before each step [K, S, T]; inf from the first step on at which it
            was not finite.
        scores: verdict of the judge [K, S]; None without one.
        variables: the networks' variables, leading axes [K, S].
        seconds: training time of all these runs together, without compilation.
        compile_seconds: tracing and compilation of the training step.
    """

    losses: np.ndarray
    scores: np.ndarray | None
    variables: Any
    seconds: float
    compile_seconds: float


@dataclass(eq=False)
class Trainer:
    """Trains any number of runs; runs of the same number are compiled once.

    Attributes:
        model: the network; its `rule` says whether it is trained in the neurons' coordinates.
        workload: data and loss.
        optimizer: makes the optimizer from a rate.
        seeds: number of seeds; they are 0, 1, ... unless `first_seed` says otherwise.
        steps: of a run.
        batch_size: samples in a step.
        judge: see `Judge`; None for none.
        first_seed: the smallest seed.
        inside: whether the optimizer works in the coordinates of a rule that takes statistics;
            else they are handed to it.
    """

    model: Any
    workload: Workload
    optimizer: Callable[[Any], optax.GradientTransformation]
    seeds: int
    steps: int
    batch_size: int
    judge: Judge | None = None
    first_seed: int = 0
    inside: bool = True

    def __post_init__(self) -> None:
        """Prepare the data and the functions, not compiled yet."""
        sizes = self.steps, self.batch_size
        self._seeds = range(self.first_seed, self.first_seed + self.seeds)
        orders = [self.workload.batches(seed, *sizes) for seed in self._seeds]
        # A number of chunks that divides the steps needs one program, not two.
        numbers = range(CHUNKS, 7, -1)
        chunks = next((n for n in numbers if self.steps % n == 0), min(CHUNKS, self.steps))
        self._rows = np.array_split(np.stack(orders), chunks, axis=1)
        self._data = _on_device(self.workload.train)
        # The inner axis is the seed, the outer one the knobs. Minibatches differ between seeds but
        # not between knobs, so that each is read once for all.
        start = jax.vmap(jax.vmap(self._start, (None, 0, None)), (0, None, None))
        advance = jax.vmap(self._advance, (0, None, None, 0, None))
        advance = jax.vmap(advance, (0, 0, 0, None, None))
        self._start_all, self._verdicts = jax.jit(start), jax.jit(self._verdict)
        self._advance_all = jax.jit(advance, donate_argnums=0)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self, knobs: Knobs, on_progress: Callable[[int], None] = lambda steps: None
    ) -> Runs:
        """Train K runs with all seeds each.

        Args:
            knobs: in what they differ.
            on_progress: called now and then with the number of steps done since, over all runs.
        """
        taken = [None] * len(self._rows)
        if knobs.taken is not None:
            taken = np.array_split(np.asarray(knobs.taken), len(self._rows), axis=1)
        known = (None if one is None else jnp.asarray(one, jnp.float32) for one in knobs)
        knobs = Knobs(*known)._replace(taken=None)
        state = self._start_all(knobs, jnp.asarray(self._seeds), self._data[0])
        losses, seconds, compile_seconds = [], 0.0, 0.0
        for rows, now in zip(self._rows, taken, strict=True):
            arguments = jax.tree.map(jnp.asarray, (state, knobs, now, rows, self._data))
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments))
            begin = time.perf_counter()
            if shapes not in self._compiled:
                self._compiled[shapes] = self._advance_all.lower(*arguments).compile()
            ready = time.perf_counter()
            state, chunk = jax.block_until_ready(self._compiled[shapes](*arguments))
            compile_seconds += ready - begin
            seconds += time.perf_counter() - ready
            losses.append(np.asarray(chunk))
            on_progress(chunk.size)
        scores = None
        if self.judge is not None:
            scores = np.asarray(self._verdicts(state[0], *_on_device(self.judge.samples)))
        variables = jax.tree.map(np.asarray, state[0])
        curves = until_divergence(np.concatenate(losses, axis=-1))
        return Runs(curves, scores, variables, seconds, compile_seconds)

    def alone(self, rate: float) -> Callable[[], np.ndarray]:
        """What makes all steps of the first seed's run as its user would, mapped over nothing.

        Under `jax.vmap` a `lax.cond` computes both of its branches, so that a step that is cheap
        alone is not. Compiled; returns the losses [T], once they are computed.
        """
        knobs = Knobs(rate)
        rows = np.concatenate([chunk[0] for chunk in self._rows])
        state = jax.jit(self._start)(knobs, self.first_seed, self._data[0])
        arguments = jax.tree.map(jnp.asarray, (state, knobs, None, rows, self._data))
        advance = jax.jit(self._advance).lower(*arguments).compile()
        return lambda: np.asarray(advance(*arguments)[1])

    def _start(self, knobs: Knobs, seed, inputs):
        """State of a run before its first step: variables and optimizer state."""
        variables = initialize(self._model_of(knobs), seed, inputs)
        return variables, self._optimizer_of(0.0).init(variables["params"])

    def _advance(self, state, knobs: Knobs, taken, rows, data):
        """Make the steps whose minibatches are `rows` [C, B]; returns (state, losses [C])."""
        return jax.lax.scan(partial(self._step, knobs, data), state, (rows, taken))

    def _step(self, knobs: Knobs, data, state, now):
        """One step of the optimizer on some samples [B], with or without taking statistics."""
        variables, memory = state
        row, taken = now
        inputs, targets = (jnp.take(samples, row, axis=0) for samples in data)
        by = {name: variables[name] for name in DIFFERENTIATED if name in variables}
        others = {name: tree for name, tree in variables.items() if name not in by}
        if taken is not None and "neuron_stats" in by:  # whatever the rule's own schedule says
            by["neuron_stats"] = asked_for(by["neuron_stats"], True)
        model = self._model_of(knobs)

        def objective(by):
            every, mutable = {**by, **others}, list(others)
            outputs, changed = model.apply(every, inputs, train=True, mutable=mutable)
            return self.workload.loss(outputs, targets), changed

        (value, others), gradients = jax.value_and_grad(objective, has_aux=True)(by)
        stats = {}
        if "neuron_stats" in by:
            new = as_asked(gradients["neuron_stats"])
            old, new = variables["neuron_stats"], _with_power(new, knobs.relative)
            merged = jaxnorm.update_statistics(old, new)
            if taken is not None:
                merged = jax.tree.map(lambda new, old: jnp.where(taken, new, old), merged, old)
            stats["neuron_stats"] = merged
        if "backward_stats" in by:  # what its gradient says is to be added
            added = by["backward_stats"], gradients["backward_stats"]
            others = {**others, "backward_stats": jax.tree.map(jnp.add, *added)}
        params = by["params"]
        optimizer = self._optimizer_of(knobs.rate)
        updates, memory = optimizer.update(gradients["params"], memory, params, **stats)
        return ({"params": optax.apply_updates(params, updates), **stats, **others}, memory), value

    def _model_of(self, knobs: Knobs) -> Any:
        if knobs.decay is None:
            return self.model
        return self.model.clone(rule=replace(self.model.rule, decay=knobs.decay))

    def _optimizer_of(self, rate: Any) -> optax.GradientTransformationExtraArgs:
        optimizer = self.optimizer(rate)
        if self.inside and in_coordinates(self.model.rule):
            return jaxnorm.in_neuron_coordinates(optimizer)
        return optax.with_extra_args_support(optimizer)

    def _verdict(self, variables, inputs, targets):
        """The verdict [K, S, ...] on networks with leading axes [K, S]."""
        assert self.judge is not None
        _, verdict = self.judge
        shape = jax.tree.leaves(variables)[0].shape[:2]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), variables)
        apply = partial(self.model.apply, train=False)
        # One network at a time, because the samples may be many.
        found = jax.lax.map(lambda one: verdict(apply(one, inputs), targets), flat)
        return found.reshape(*shape, *found.shape[1:])


def initialize(model: Any, seed: Any, inputs: jax.typing.ArrayLike) -> Any:
    """Initial variables: parameters and, where they are needed, statistics.

    Args:
        model: the network.
        seed: of the run; may be traced.
        inputs: [N, I], for their width only.
    """
    inputs = jnp.asarray(inputs)[:2]
    variables = model.init(jax.random.key(seed), inputs, train=False)
    if in_coordinates(model.rule):
        stats = jaxnorm.linen.init_statistics(model.apply, variables, inputs, train=False)
        variables = {**variables, "neuron_stats": stats}
    return variables


def in_coordinates(rule: jaxnorm.Rule | None) -> bool:
    """Whether layers under a rule take statistics, for an optimizer in the coordinates."""
    return rule is not None and rule.gradient in (None, "plain_with_statistics")


def predict(model: nn.Module, variables: Any, inputs: np.ndarray) -> np.ndarray:
    """Outputs [N, O] of one trained network for inputs [N, I]."""
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, jnp.asarray(inputs)))


def until_divergence(losses: np.ndarray) -> np.ndarray:
    """Losses [..., T] with inf from the first step on that is not finite."""
    return np.where(np.logical_and.accumulate(np.isfinite(losses), axis=-1), losses, np.inf)


def _with_power(stats: Any, relative: Any) -> Any:
    """The statistics of a batch, sigma divided by another power; as they are for None."""
    if relative is None:
        return stats
    return jax.tree.map(
        lambda record: record.with_scalars(relative=relative * record.relative),
        stats,
        is_leaf=lambda node: isinstance(node, Statistics),
    )


def _on_device(samples: Samples) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(samples.inputs), jnp.asarray(samples.targets)
