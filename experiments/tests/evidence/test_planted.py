"""Planted bugs: the proof that the tests of what judges the runs can fail."""

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

import pytest

from experiments.evidence import figures, judge, outcomes, stored, tables
from experiments.tests.evidence import (
    test_judge,
    test_outcomes,
    test_report,
    test_seconds,
    test_sweep,
)


class Planted(NamedTuple):
    """One substitution in the source of a module, whose old text occurs there exactly once."""

    module: ModuleType
    old: str
    new: str


PLANTED = [
    Planted(judge, "values <= target", "values < target"),
    Planted(judge, "int(below[0]) + 1", "int(below[0])"),
    Planted(judge, "int(below[0])", "int(below[-1])"),
    Planted(judge, "* steps / len(values)", "* steps / RESAMPLES"),
    Planted(judge, "float(np.median(finals)) for", "float(np.mean(finals)) for"),
    Planted(judge, "best = min(medians", "best = max(medians"),
    Planted(judge, "not best or not math.isfinite(medians[best])", "not best"),
    Planted(judge, "not best or not math", "not math"),
    Planted(judge, "(0, len(ratios), (", "(0, len(ratios) - 1, ("),
    Planted(judge, "0.025 * RESAMPLES", "0.25 * RESAMPLES"),
    Planted(judge, "0.975 * RESAMPLES", "0.75 * RESAMPLES"),
    Planted(
        judge,
        "medians = np.sort(_median(ratios[chosen]))",
        "medians = np.sort(ratios[chosen][:, 0])",
    ),
    Planted(judge, "return float(_median(ratios))", "return float(ratios.mean())"),
    Planted(judge, "(np.isinf(one) | (one == 0))", "(one == 0)"),
    Planted(judge, "(np.isinf(one) | (one == 0))", "np.isinf(one)"),
    Planted(judge, "alike, 1.0, one / other", "alike, 1.0, np.sort(one) / np.sort(other)"),
    Planted(judge, "one.shape != other.shape or", ""),
    Planted(judge, "ordered = np.sort(values, axis=-1)", "ordered = values"),
    Planted(judge, "(lower + upper) / 2", "upper"),
    Planted(judge, "sums = abs(flips @ logs)", "sums = flips @ logs"),
    Planted(judge, "sums >= sums[0] * (1 - 1e-12)", "sums > sums[0] * (1 + 1e-12)"),
    Planted(judge, ", -math.log(10), math.log(10))", ", -math.inf, math.inf)"),
    Planted(judge, "len(order) - rank", "len(order)"),
    Planted(judge, "max(largest, min(1.0,", "max(0.0, min(1.0,"),
    Planted(judge, "min(1.0, (", "min(9.0, ("),
    Planted(judge, "np.asarray(values) <= tau", "np.asarray(values) < tau"),
    Planted(outcomes, "if not baselines or screened", "if not baselines or set()"),
    Planted(outcomes, "if ENTRIES[name].baseline}\n    screened", "}\n    screened"),
    Planted(outcomes, 'stage == "screen" and ENTRIES[name].baseline', 'stage == "screen"'),
    Planted(outcomes, "except ValueError:", "except KeyError:"),
    Planted(outcomes, "chosen in (grid[0], grid[-1])", "chosen == grid[0]"),
    Planted(outcomes, "chosen in (grid[0], grid[-1])", "chosen == grid[-1]"),
    Planted(outcomes, "rate_of(index),", "rate_of(grid[0]),"),
    Planted(outcomes, '["validation"]', '["validation_figure"]'),
    Planted(outcomes, '["test"][index], math.nan', '["test"][index], 0.0'),
    Planted(outcomes, '["test"][index]', '["validation"][index]'),
    Planted(outcomes, " if final < math.inf else math.inf", ""),
    Planted(outcomes, "steps_to(_numbers(curve, math.inf), steps,", "steps_to(curve, 1,"),
    Planted(
        outcomes,
        "self.outcomes[method].finals, self.outcomes[other].finals)\n\n    def s",
        "self.outcomes[other].finals, self.outcomes[method].finals)\n\n    def s",
    ),
    Planted(
        outcomes,
        "self.outcomes[method].steps, self.outcomes[other].steps",
        "self.outcomes[other].steps, self.outcomes[method].steps",
    ),
    Planted(tables, ".fresh == fresh", ".fresh != fresh"),
    Planted(tables, "float(np.median(v))", "float(np.max(v))"),
    Planted(tables, '_number(ratio) + "!" * found.outcomes[method].at_edge', "_number(ratio)"),
    Planted(
        tables,
        "ratio, _, _ = found.loss_ratio(method, found.best)",
        'ratio, _, _ = found.loss_ratio(method, "plain")',
    ),
    Planted(tables, "_number(steps / best), steps / best", "_number(steps), steps"),
    Planted(tables, '"never", math.inf) if', '"", math.nan) if'),
    Planted(
        tables, "steps * each[method] / each[one.best]", "steps / each[method] * each[one.best]"
    ),
    Planted(tables, "method not in each or one.best not in each", "False"),
    Planted(tables, "if lost and tests", "if lost and not tests"),
    Planted(tables, "adjusted = holm(", "adjusted = dict("),
    Planted(tables, "each.p_value(OURS, each.best)", 'each.p_value(OURS, "layernorm")'),
    Planted(tables, 'each.loss_ratio(OURS, "plain") if', "each.loss_ratio(OURS, each.best) if"),
    Planted(
        tables,
        "_interval(each.steps_ratio(OURS, each.best))",
        "_interval(each.loss_ratio(OURS, each.best))",
    ),
    Planted(figures, "row.get(name, np.inf) / min(row.values())", "row.get(name, np.inf)"),
    Planted(figures, "if np.isfinite(min(row.values())) else np.inf", ""),
    Planted(stored, "in sorted(runs[cell])", "in runs[cell]"),
    Planted(stored, "counted[cell] = whole[-1]", "counted[cell] = whole[0]"),
    Planted(stored, 'cell, record["key"], record["finished"]', 'cell, "", ""'),
    Planted(stored, "sorted(runs, key=_place)", "list(runs)"),
    Planted(stored, "sorted(run.records.items())", "[*run.records.items()][1:]"),
    Planted(stored, "seeds == set(range(STAGES[cell.stage]))", "seeds"),
    Planted(stored, "best is not None and best != index", "False"),
    Planted(stored, "if screen is None:", "if False:"),
    Planted(stored, "if len(known) < len(counted):", "if False:"),
]


def checks_of(module: ModuleType, folder: Callable[[], Path]) -> Iterator[Callable[[], object]]:
    """The tests of a module, each without arguments.

    Args:
        module: which.
        folder: makes an empty folder.
    """
    if module is judge:
        for name, each in vars(test_judge).items():
            if name.startswith("test_") and isinstance(each, FunctionType):
                yield each
        return
    if module is stored:
        for test in (
            test_report.test_of_a_cell_that_was_run_twice_the_run_that_finished_last_counts,
            test_report.test_what_does_not_fit_together_is_said,
            test_report.test_parts_are_joined_cell_by_cell,
        ):
            yield partial(test, folder())
        return
    for best, at_edge in ((-6, True), (-4, False), (-2, True)):
        edge = test_outcomes.test_the_edge_of_the_grid_is_its_first_and_its_last_rate
        yield partial(edge, best, at_edge)
    yield from (
        test_outcomes.test_an_outcome_by_hand,
        test_outcomes.test_a_problem_waits_for_every_baseline_that_was_screened,
        test_outcomes.test_ratios_are_over_the_fastest_method,
        test_outcomes.test_tables_by_hand,
        test_sweep.test_outcomes_by_hand,
        test_seconds.test_seconds_to_the_target_are_steps_times_seconds,
    )


@pytest.mark.parametrize("planted", PLANTED, ids=lambda one: f"{one.old} -> {one.new}")
def test_a_planted_bug_is_caught(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of the tests of its module; without it they pass, each in its own file."""
    numbers = itertools.count()

    def folder() -> Path:
        path = tmp_path / str(next(numbers))
        path.mkdir()
        return path

    tests = list(checks_of(planted.module, folder))
    plant(planted, monkeypatch)
    for test in tests:
        try:
            test()
        except (Exception, pytest.fail.Exception):
            return
    pytest.fail(f"no test has seen {planted.old!r} become {planted.new!r}")


def plant(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put what a module is with the bug wherever something of it is used."""
    module, source = planted.module, inspect.getsource(planted.module)
    assert source.count(planted.old) == 1, f"{planted.old!r}: {source.count(planted.old)} times"
    spoiled = ModuleType(module.__name__)
    spoiled.__file__ = module.__file__
    monkeypatch.setitem(sys.modules, module.__name__, spoiled)
    exec(compile(source.replace(planted.old, planted.new), "planted", "exec"), vars(spoiled))
    for name, user in list(sys.modules.items()):
        if name == __name__ or not name.startswith("experiments."):
            continue
        for attribute, value in list(vars(user).items()):
            if value is module:
                monkeypatch.setattr(user, attribute, spoiled)
            elif getattr(value, "__module__", None) == module.__name__ and user is not spoiled:
                monkeypatch.setattr(user, attribute, getattr(spoiled, attribute))
