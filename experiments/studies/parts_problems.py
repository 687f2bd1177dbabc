"""What `parts` trains: problems, kinds of layers, forms of the rule, and changed networks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import jaxnorm
from experiments.studies.changed import Change
from experiments.studies.tasks import TASKS


class Problem(NamedTuple):
    """A network, data and an optimizer.

    Attributes:
        task: its name in `TASKS`.
        optimizer: its name for `make_optimizer`.
        batch_size: samples in a step.
        steps: of a run.
        guess: a rate, where the search for the best one begins.
        layers: the kind of each linear layer.
        forms: of the rule that are tried in all layers, see `FORMS`.
        networks: that are trained beside the task's own, see `NETWORKS`.
    """

    task: str
    optimizer: str
    batch_size: int
    steps: int
    guess: float
    layers: Mapping[str, str]
    forms: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As in tables and plots."""
        names = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
        return f"{TASKS[self.task].title}, {names[self.optimizer]}"

    @property
    def kinds(self) -> list[str]:
        """Every kind once, in the order of the layers."""
        return list(dict.fromkeys(self.layers.values()))


_BLOCK = ("attention's output", "queries", "keys", "values", "MLP, in", "MLP, out")
_TRANSFORMER = {
    **{f"Dense_{number}": _BLOCK[number % 6] for number in range(12)},
    "Dense_12": "logits",
}
_MLP = {
    "Dense_0": "first layer",
    "Dense_1": "hidden layers",
    "Dense_2": "hidden layers",
    "Dense_3": "logits",
}
_CONVNET = {"Conv_0": "first convolution", "Conv_1": "second convolution", "Dense_0": "logits"}
_CIFAR = {**_CONVNET, "Dense_0": "hidden dense", "Dense_1": "logits"}

FORMS = {
    "uniform": ("layer-wide statistics", {"weighting": "uniform"}),
    "centered": ("centered only", {"scale": "none"}),
    "layer_scale": ("layer scale", {"scale": "layer"}),
    "standardized": ('"standardized"', {"step_size": "standardized"}),
    "bnp": ("BNP", vars(jaxnorm.BNP)),
}
"""By their names: the title, and in what they differ from the default rule."""

NETWORKS = {
    "queries": ("queries have a second bias, times 10", Change(query_bias=10.0)),
    "large": ("inputs times 5, kernels over 5", Change(unit=5.0)),
    "small": ("inputs times 0.2, kernels over 0.2", Change(unit=0.2)),
    "centered": ("inputs without their means", Change(centered=True)),
}
"""By their names: the title, and what is different."""

PROBLEMS = {
    "text_adamw": Problem(
        "text", "adamw", 16, 200, 0.01, _TRANSFORMER, networks=("queries", "small", "centered")
    ),
    "bare_text_adamw": Problem(
        "bare_text", "adamw", 16, 200, 0.01, _TRANSFORMER, networks=("queries", "large")
    ),
    "photo_adam": Problem("small_photo", "adam", 256, 300, 0.01, _MLP, tuple(FORMS)),
    "convnet_sgd": Problem("convnet", "sgd", 64, 200, 0.1, _CONVNET, tuple(FORMS)),
    "cifar_sgd": Problem("cifar", "sgd", 64, 150, 0.03, _CIFAR, tuple(FORMS)),
}
"""By their names on the command line."""


def rule_of(form: str) -> jaxnorm.Rule:
    """The default rule, or a form of it."""
    return replace(jaxnorm.NEURONWISE, **FORMS[form][1]) if form else jaxnorm.NEURONWISE
