"""All runs of one method of the comparison."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import optax.contrib

from experiments.networks.mlp import MLP
from experiments.options import Plan
from experiments.training.timing import median_seconds
from experiments.training.trainer import Judge, Knobs, Runs, Trainer
from experiments.workloads import Workload


def train_method(
    model: MLP,
    workload: Workload,
    plan: Plan,
    on_progress: Callable[[int], None] = lambda steps: None,
) -> Runs:
    """Train a network at every rate and seed of a plan; the scores are test figures.

    Args:
        model: the network.
        workload: data and loss.
        plan: what to do.
        on_progress: called now and then with the number of steps done since, over all runs.
    """
    judge = Judge(workload.test, lambda outputs, targets: workload.score(outputs, targets).mean())
    trainer = _make_trainer(model, workload, plan, plan.seeds, plan.steps, judge)
    together = plan.parallel_rates or len(plan.rates)
    parts = [
        trainer(Knobs(plan.rates[first : first + together]), on_progress)
        for first in range(0, len(plan.rates), together)
    ]
    losses, scores, variables = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *(part[:3] for part in parts)
    )
    return Runs(
        losses,
        np.vectorize(workload.test_figure, otypes=[float])(scores),
        variables,
        seconds=sum(part.seconds for part in parts),
        compile_seconds=sum(part.compile_seconds for part in parts),
    )


class Alone(NamedTuple):
    """A run that is timed.

    Attributes:
        model: the network.
        rate: of the optimizer.
        steps: how many, from the first one on: statistics are taken in fewer and fewer of them.
    """

    model: MLP
    rate: float
    steps: int


def time_steps(runs: Mapping[str, Alone], workload: Workload, plan: Plan) -> dict[str, float]:
    """The seconds of a step of each run alone, without compilation; see `Trainer.alone`.

    Args:
        runs: by the names of their methods.
        workload: data and loss.
        plan: what the steps are.
    """
    ready = {
        name: _make_trainer(run.model, workload, plan, 1, run.steps).alone(run.rate)
        for name, run in runs.items()
    }
    return {name: seconds / runs[name].steps for name, seconds in median_seconds(ready).items()}


def _make_trainer(
    model: MLP, workload: Workload, plan: Plan, seeds: int, steps: int, judge: Judge | None = None
) -> Trainer:
    optimizer = partial(make_optimizer, plan.optimizer, plan.momentum)
    return Trainer(model, workload, optimizer, seeds, steps, plan.batch_size, judge)


def make_optimizer(name: str, momentum: float, rate: Any) -> optax.GradientTransformation:
    """SGD with momentum, Adam, AdamW or Muon (Adam for what is no matrix).

    Args:
        name: which.
        momentum: of SGD.
        rate: a number, or a schedule of steps.
    """
    makers = {
        "sgd": partial(optax.sgd, momentum=momentum),
        "adam": optax.adam,
        "adamw": partial(optax.adamw, weight_decay=0.01),
        "muon": optax.contrib.muon,
    }
    return makers[name](rate)
