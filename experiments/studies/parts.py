"""Which layers gain by the rule: it is applied to some kinds of them only."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.records.content import content_key
from experiments.records.runs import rounded
from experiments.report.tables import Table
from experiments.studies import parts_figures, parts_tables
from experiments.studies.changed import network
from experiments.studies.grid import index_of, search
from experiments.studies.measures import pieces
from experiments.studies.options import PartsOptions
from experiments.studies.partly import InTurn, partly
from experiments.studies.parts_problems import NETWORKS, PROBLEMS, Problem, rule_of
from experiments.studies.study import Result, Study
from experiments.studies.tasks import MOMENTUM, TASKS, final_losses
from experiments.training.trainer import Knobs

MOST = 12
"""Rates that are tried at most: six decades."""
PIECES = 50
"""A learning curve is remembered as the means of so many parts."""
SAMPLES = 128
"""The inputs of the layers are those of so many training samples."""


class Cell(NamedTuple):
    """A name in `PROBLEMS`, in `NETWORKS`, in `FORMS`, and the layers that are under the rule.

    "" for the task's network and the default rule; "none", "all", a kind of layers, or one behind
    "all but ".
    """

    problem: str
    network: str
    form: str
    layers: str


class Parts(Study):
    """The final loss, each at its best rate, and the size of the inputs of the layers."""

    name = "parts"
    further = ("curve", "inputs")
    notes = parts_tables.NOTES
    options: PartsOptions

    def cells(self) -> list[Cell]:
        """Problem by problem; what shares a program stands together, without the rule first."""
        cells = []
        for problem in self.options.problems:
            of = PROBLEMS[problem]
            kinds = of.kinds[:1] if self.options.quick else of.kinds
            names = ["none", "all", *kinds, *(f"all but {kind}" for kind in kinds)]
            cells += [Cell(problem, "", "", layers) for layers in names]
            if not self.options.quick:
                cells += [Cell(problem, "", form, "all") for form in of.forms]
                cells += [
                    Cell(problem, name, "", layers)
                    for name in of.networks
                    for layers in ("none", "all")
                ]
        return cells

    def content(self, cell: Cell) -> dict[str, Any]:
        """The problem, and the rest by what it is."""
        problem = PROBLEMS[cell.problem]
        return {
            "task": problem.task,
            "optimizer": problem.optimizer,
            "batch_size": problem.batch_size,
            "steps": self._steps(problem),
            "guess": problem.guess,
            "rule": str(rule_of(cell.form)),
            "change": str(NETWORKS[cell.network][1]) if cell.network else "",
            "shares": dict(zip(problem.kinds, _shares(cell), strict=True)),
            "layers": dict(problem.layers),
            "momentum": MOMENTUM,
            "most": MOST,
            "pieces": PIECES,
            "samples": SAMPLES,
        }

    def key(self, content: dict[str, Any], origin: dict[str, Any]) -> str:
        """What trains counts too."""
        workload = self.workload(content["task"])
        code = ("studies/partly.py", *["studies/changed.py"] * bool(content["change"]))
        return content_key(origin, workload, content, code)

    def train(self, cell: Cell) -> Result:
        """Search for the best rate, from the same guess for all of a problem."""
        problem = PROBLEMS[cell.problem]
        train = self.trainer(cell[:3], lambda: self._make(cell))
        curves: dict[int, list[Any]] = {}
        inputs: dict[int, list[Any]] = {}

        def losses(rates: list[float]) -> np.ndarray:
            runs = train(Knobs([[rate, *_shares(cell)] for rate in rates]))
            for number, rate in enumerate(rates):
                index = index_of(rate)
                curves[index] = rounded(pieces(runs.losses[number], PIECES).tolist())
                inputs[index] = [
                    rounded(self._inputs(cell, number, seed, runs.variables))
                    for seed in range(self.options.seeds)
                ]
            return final_losses(runs, problem.batch_size)

        finals = search(losses, problem.guess, portion=3, stride=2, most=MOST)
        return Result(cell, finals, {"curve": curves, "inputs": inputs})

    def _make(self, cell: Cell) -> InTurn:
        problem = PROBLEMS[cell.problem]
        numbers = {layer: problem.kinds.index(kind) for layer, kind in problem.layers.items()}
        return InTurn(
            self._network(cell),
            self.workload(problem.task),
            partly(problem.optimizer, numbers),
            self.options.seeds,
            self._steps(problem),
            problem.batch_size,
            inside=False,
        )

    def _steps(self, problem: Problem) -> int:
        return problem.steps // 10 if self.options.quick else problem.steps

    def _network(self, cell: Cell) -> Any:
        problem = PROBLEMS[cell.problem]
        change = NETWORKS[cell.network][1] if cell.network else None
        outputs = self.workload(problem.task).outputs
        return network(TASKS[problem.task], rule_of(cell.form), outputs, change)

    def _inputs(self, cell: Cell, number: int, seed: int, variables: Any) -> list[list[float]]:
        """(root of the sum of mean^2, of sigma^2) of each layer's inputs in a trained network."""
        train = self.workload(PROBLEMS[cell.problem].task).train
        chosen = np.random.default_rng(0).permutation(len(train))[:SAMPLES]
        params = jax.tree.map(lambda leaf: leaf[number, seed], variables["params"])
        return sizes_of_inputs(self._network(cell), params, train.inputs[chosen])

    def tables(self, results: list[Result]) -> list[Table]:
        """Layers, forms and networks down."""
        return parts_tables.make(results)

    def draw(self, results: list[Result]) -> Figure:
        """Loss over plain's, a bar for each."""
        return parts_figures.draw(results)


def sizes_of_inputs(model: nn.Module, params: Any, inputs: np.ndarray) -> list[list[float]]:
    """(root of the sum of mean^2, of sigma^2) over the channels of each linear layer's inputs.

    Args:
        model: the network.
        params: its parameters.
        inputs: some samples.

    Returns:
        The layers as they are called.
    """
    found = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        linear = isinstance(context.module, nn.Dense | nn.Conv)
        if linear and context.method_name == "__call__":
            x = np.asarray(args[0], np.float64).reshape(-1, args[0].shape[-1])
            found.append([float(np.linalg.norm(of)) for of in (x.mean(axis=0), x.std(axis=0))])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        model.apply({"params": params}, inputs, train=True)
    return found


def _shares(cell: Cell) -> list[float]:
    """1 for each kind of layers that is under the rule, else 0."""
    kinds = PROBLEMS[cell.problem].kinds
    if cell.layers in ("none", "all"):
        return [float(cell.layers == "all")] * len(kinds)
    left = cell.layers.removeprefix("all but ")
    return [float((kind == left) == (left == cell.layers)) for kind in kinds]
