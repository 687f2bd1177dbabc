"""Every method does something of its own, on a small network."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from experiments.evidence.entries import ENTRIES
from experiments.evidence.options import SweepOptions
from experiments.evidence.problems import PROBLEMS, Problem
from experiments.evidence.sweep import Cell, Sweep, fits, held_out, make_trainer
from experiments.networks.layers import weight_norm
from experiments.studies.tasks import TASKS, Task
from experiments.training.trainer import Knobs, Runs
from experiments.workloads import STUDIED

#: Inputs that are not standardized, some of them always 0.
SMALL = {name: Problem("small", name, 32, 4, 0.03, 0.1, fresh=False) for name in ("sgd", "adam")}
WINE = STUDIED["wine"].load()
#: They differ from "neuronwise" by their rule alone.
RULES = ("bnp", "quasi_diagonal", "centered", "layer_scale", "every_step", "averaged")


@pytest.fixture(scope="module")
def trained() -> dict[tuple[str, str], Runs]:
    """(optimizer, method) -> four steps at two rates; Adam's only where a method needs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "small", Task("small", "digits", widths=(8,)))
        fit = {
            (name, method)
            for name, problem in SMALL.items()
            for method, entry in ENTRIES.items()
            if fits(problem, entry)
        }
        chosen = {pair for pair in fit if pair[0] == "sgd"} | {("adam", "plain"), ("adam", "muon")}
        chosen = {pair for pair in chosen if pair[1] not in RULES}
        assert {method for _, method in chosen} == ENTRIES.keys() - set(RULES)
        digits = STUDIED["digits"].load()
        found = {}
        for optimizer, method in sorted(chosen):
            learned, _ = held_out(digits, ENTRIES[method].standardized)
            train = make_trainer(SMALL[optimizer], ENTRIES[method], learned, seeds=1)
            # Operation by operation: these are nearly the same for all, and compiled once.
            train._start_all = train._start_all.__wrapped__
            found[optimizer, method] = train(Knobs([0.1, 0.01]))
    return found


def test_no_method_is_another(trained: dict[tuple[str, str], Runs]) -> None:
    """A method that is ignored somewhere has the losses of plain, or of its neighbor."""
    last = {pair: runs.losses[:, 0, -1] for pair, runs in trained.items()}
    for (optimizer, method), losses in last.items():
        assert np.isfinite(losses).all(), method
        for (other_optimizer, other), others in last.items():
            if other_optimizer != optimizer or other <= method:
                continue
            assert abs(losses / others - 1).max() > 1e-5, (method, other)


def test_rules_reach_the_network() -> None:
    rules = {name: ENTRIES[name].rule for name in (*RULES, "neuronwise")}
    assert len(set(map(str, rules.values()))) == len(rules)
    for name, rule in rules.items():
        assert ENTRIES[name] == replace(ENTRIES["neuronwise"], title=ENTRIES[name].title, rule=rule)
        assert make_trainer(PROBLEMS["wine_sgd"], ENTRIES[name], WINE, seeds=1).model.rule == rule


def test_what_changes_the_step_alone_starts_as_plain(
    trained: dict[tuple[str, str], Runs],
) -> None:
    changed = {name for name, entry in ENTRIES.items() if entry.normalizer or entry.standardized}
    plain = trained["sgd", "plain"].losses[:, 0, 0]
    for (_, method), runs in trained.items():
        near = abs(runs.losses[:, 0, 0] / plain - 1) < 1e-5
        assert near.all() != (method in changed), method


def test_online_normalization_has_its_backward_state(
    trained: dict[tuple[str, str], Runs],
) -> None:
    state = trained["sgd", "onlinenorm"].variables["backward_stats"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state))


def test_inputs_are_standardized_by_what_is_learned_from() -> None:
    learned, kept_out = held_out(STUDIED["digits"].load(), standard=True)
    varies = learned.train.inputs.std(axis=0) > 0
    np.testing.assert_allclose(learned.train.inputs.mean(axis=0), 0, atol=1e-5)
    assert abs(np.median(learned.train.inputs.std(axis=0)[varies]) - 1) < 0.02
    assert abs(kept_out.inputs.mean(axis=0)[varies]).max() > 1e-3


@pytest.mark.parametrize("name", ["digits", "text", "resnet"])
def test_weight_norm_is_around_every_layer(name: str) -> None:
    task = TASKS[name]
    network = task.network(None, 11, wrapper=weight_norm)
    inputs = {"digits": (2, 64), "text": (2, 5), "resnet": (2, 768)}[name]
    x = np.zeros(inputs, np.int32 if name == "text" else np.float32)
    made = jax.eval_shape(lambda: network.init(jax.random.key(0), x, train=False))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(made["params"])]
    assert sum("scale" in path for path in paths if "WeightNorm" in path) == sum(
        path.endswith("['kernel']") for path in paths
    )


def test_where_a_method_cannot_be_had() -> None:
    names: Any = ("burgers_sgd", "mnist_sgd_1", "mnist_adam_1", "wine_sgd", "text_adamw")
    cells = set(Sweep(SweepOptions(problems=names)).cells())
    runs = lambda problem, method: Cell(problem, method, "final") in cells  # noqa: E731
    assert not any(runs("burgers_sgd", m) for m in ("batchnorm", "onlinenorm", "inputs", "literal"))
    assert all(runs("burgers_sgd", m) for m in ("layernorm", "weightnorm", "neuronwise", "metric"))
    assert runs("mnist_sgd_1", "batchnorm")
    assert not any(runs("mnist_sgd_1", m) for m in ("mixturenorm", "batchrenorm"))
    assert not runs("mnist_adam_1", "bnp_published")
    assert not runs("wine_sgd", "inputs")
    assert runs("mnist_sgd_1", "inputs")
    assert runs("text_adamw", "weightnorm")
    assert not runs("text_adamw", "inputs")
