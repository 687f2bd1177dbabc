"""What `sensitivity` varies: a setting, and the things in it that change one at a time."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxnorm
from experiments.methods import METHODS, Method
from experiments.networks.convnet import ConvNet
from experiments.studies.tasks import MOMENTUM, TASKS
from experiments.training.method import make_optimizer
from experiments.workloads import Samples, Workload

ENTRIES = {
    **{name: METHODS[name] for name in ("plain", "batchnorm", "bnp", "neuronwise")},
    "standardized": Method(
        'neuron-wise, "standardized"', replace(jaxnorm.NEURONWISE, step_size="standardized")
    ),
}
"""The methods; the last one takes part where its step is what the question is about."""
BATCH = 64
"""Samples in a step, where they do not vary."""
WARM = 0.1
"""The share of a run over which a rate rises from 0, where it does."""


class Problem(NamedTuple):
    """What is learned, and where the search for the best rate begins.

    Attributes:
        task: its name in `TASKS`.
        optimizer: its name for `make_optimizer`.
        steps: of a run at batches of 64; a batch four times as large has half of them.
        guess: a rate.
    """

    task: str
    optimizer: str
    steps: int
    guess: float

    @property
    def title(self) -> str:
        """As in tables and plots."""
        return f"{TASKS[self.task].title}, {'SGD' if self.optimizer == 'sgd' else 'Adam'}"


PROBLEMS = {
    "friedman_sgd": Problem("friedman", "sgd", 300, 0.1),
    "friedman_adam": Problem("friedman", "adam", 300, 0.01),
    "pixels_sgd": Problem("pixels", "sgd", 200, 0.1),
}
"""By their names on the command line: standardized inputs, and raw ones whose means are large."""


@dataclass(frozen=True)
class Setting:
    """All that may vary.

    Attributes:
        widths: of the hidden layers.
        batch_size: samples in a step.
        scale: of the initial weights, 1 for those of Flax.
        unit: of the inputs, 1 for the workload's own.
        mean: that is added to all inputs, in their root mean square standard deviation.
        schedule: of the rate, a name in `SHAPES`.
        rule: of the neuron-wise method.
    """

    widths: tuple[int, ...] = (64, 64, 64)
    batch_size: int = BATCH
    scale: float = 1.0
    unit: float = 1.0
    mean: float = 0.0
    schedule: str = "constant"
    rule: jaxnorm.Rule = jaxnorm.NEURONWISE

    def content(self) -> dict[str, Any]:
        """What determines a result, for JSON."""
        return {**asdict(replace(self, rule=jaxnorm.PLAIN)), "rule": str(self.rule)}

    def workload(self, workload: Workload) -> Workload:
        """The data in this unit, with this mean."""
        if (self.unit, self.mean) == (1, 0):
            return workload
        sigma = float(np.sqrt(workload.train.inputs.var(axis=0, dtype=np.float64).mean()))
        same = copy.copy(workload)
        same.train, same.test = (
            Samples(
                ((part.inputs + self.mean * sigma) * self.unit).astype(np.float32), part.targets
            )
            for part in (workload.train, workload.test)
        )
        return same

    def network(self, method: str, outputs: int) -> "Scaled":
        """A method's network of these widths and initial weights."""
        of = ENTRIES[method]
        rule = self.rule if method == "neuronwise" else of.rule
        return Scaled((), self.widths, outputs, rule, of.normalizer, factor=self.scale)

    def steps(self, problem: Problem) -> int:
        """Of a run."""
        return round(problem.steps * (BATCH / self.batch_size) ** 0.5)

    def optimizer(self, problem: Problem, rate: Any) -> optax.GradientTransformation:
        """At a rate that follows the schedule."""
        shape = SHAPES[self.schedule](self.steps(problem))
        return make_optimizer(problem.optimizer, MOMENTUM, lambda step: rate * shape(step))


class Scaled(ConvNet):
    """The network of the studies with other initial weights.

    Attributes:
        factor: of all kernels.
    """

    factor: float = 1.0

    @nn.nowrap
    def init(self, *args: Any, **kwargs: Any) -> Any:
        """As that of every module, the kernels times the factor."""

        def scaled(path: Any, leaf: jax.Array) -> jax.Array:
            return leaf * self.factor if path[-1].key == "kernel" else leaf

        return jax.tree_util.tree_map_with_path(scaled, super().init(*args, **kwargs))


def _warm_up(steps: int, *, then: optax.Schedule) -> optax.Schedule:
    rise = max(1, round(WARM * steps))
    return lambda step: then(step) * jax.numpy.minimum(1.0, (step + 1) / rise)


SHAPES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "warm-up": lambda steps: _warm_up(steps, then=optax.constant_schedule(1.0)),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "warm-up, cosine": lambda steps: _warm_up(steps, then=optax.cosine_decay_schedule(1.0, steps)),
}
"""Of how many steps -> the share of the rate at each."""


class Variation(NamedTuple):
    """One thing that varies.

    Attributes:
        title: as in tables and plots.
        values: that it takes, in order.
        default: the one among them that it has while others vary.
        change: the setting with a value of it.
        methods: that it is varied with.
    """

    title: str
    values: tuple[Any, ...]
    default: Any
    change: Callable[[Setting, Any], Setting]
    methods: tuple[str, ...] = tuple(ENTRIES)[:-1]

    @property
    def ours(self) -> bool:
        """Whether it is a knob of the rule, which no other method has."""
        return self.methods == _OURS


_OURS, _ALL = ("neuronwise",), tuple(ENTRIES)


def _field(name: str) -> Callable[[Setting, Any], Setting]:
    return lambda setting, value: replace(setting, **{name: value})


def _knob(name: str) -> Callable[[Setting, Any], Setting]:
    return lambda setting, value: replace(setting, rule=replace(setting.rule, **{name: value}))


def _widths(setting: Setting, width: int) -> Setting:
    return replace(setting, widths=(width,) * len(setting.widths))


def _depth(setting: Setting, depth: int) -> Setting:
    return replace(setting, widths=setting.widths[:1] * depth)


VARIATIONS = {
    "width": Variation("width", (16, 32, 64, 128, 256), 64, _widths),
    "depth": Variation("hidden layers", (2, 3, 6, 12), 3, _depth),
    "scale": Variation("initial weights, times", (0.1, 0.3, 1, 3, 10), 1, _field("scale"), _ALL),
    "unit": Variation("unit of the inputs", (0.01, 0.1, 1, 10, 100), 1, _field("unit"), _ALL),
    "mean": Variation("mean of the inputs / sigma", (0, 1, 3, 10, 30), 0, _field("mean"), _ALL),
    "batch_size": Variation("batch size", (4, 16, 64, 256, 1024), 64, _field("batch_size")),
    "schedule": Variation("rate", tuple(SHAPES), "constant", _field("schedule")),
    "damping": Variation("damping", (0, 0.01, 0.1, 1, 10), 0.1, _knob("damping"), _OURS),
    "shrinkage": Variation("shrinkage", (0, 2, 8, 32, 128), 8, _knob("shrinkage"), _OURS),
    "decay": Variation("decay", (0, 0.5, 0.9, 0.99), 0, _knob("decay"), _OURS),
    "statistics_every": Variation(
        "statistics_every", (1, 4, 16, 64), 16, _knob("statistics_every"), _OURS
    ),
}
"""By their names on the command line."""
