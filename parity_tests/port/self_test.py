"""Whether the verifier finds what is planted, and only that: the option `--self-test`.

Every fault of `faults` is planted in its pair, one at a time, and must be found, in the right
layer, and be called by its name. Then pairs that are right, with random knobs, must raise no alarm.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from parity_tests import progress
from parity_tests.port.errors import CannotCompare
from parity_tests.port.faults import FAULTS, Fault
from parity_tests.port.pairs import PAIRS
from parity_tests.port.report import Report
from parity_tests.port.verify import verify

#: Correct configurations in the whole run and in a quick one.
MANY, FEW = 50, 6
#: Each holds both frameworks in its memory.
MOST_PROCESSES = 4


@dataclass(frozen=True)
class Trial:
    """A pair of models to verify.

    Attributes:
        name: what it is called.
        pair: which pair it is.
        configuration: its knobs.
        reference: "torch" or "flax".
        fault: what is planted in it, if anything.
    """

    name: str
    pair: str
    configuration: dict[str, Any]
    reference: str
    fault: Fault | None = None


@dataclass(frozen=True)
class Outcome:
    """What the verifier said of a trial.

    Attributes:
        trial: the trial.
        found: whether it raised an alarm.
        layer: the layer that it named.
        causes: the causes that it named.
        place: whether the layer is the right one; without a fault: whether all is quiet.
        named: whether the cause is among them.
        text: all that it said.
    """

    trial: Trial
    found: bool
    layer: str
    causes: tuple[str, ...]
    place: bool
    named: bool
    text: str

    @property
    def right(self) -> bool:
        """Whether it said what it should."""
        if self.trial.fault is None:
            return not self.found
        return self.found and self.place and self.named


def planted(faults: tuple[Fault, ...] = FAULTS) -> list[Trial]:
    """A trial for each fault; the correct side is the reference."""
    return [
        Trial(f.name, f.pair, f.knobs, "torch" if f.side == "flax" else "flax", f) for f in faults
    ]


def correct(count: int, seed: int = 0) -> list[Trial]:
    """Pairs in turn, with random knobs, either side the reference."""
    trials = []
    for number in range(count):
        pair = PAIRS[number % len(PAIRS)]
        rng = np.random.default_rng((seed, number))
        configuration = import_module(f"parity_tests.port.pairs.{pair}").random_configuration(rng)
        reference = str(rng.choice(["torch", "flax"]))
        trials.append(Trial(f"correct {number}", pair, configuration, reference))
    return trials


def attempt(trial: Trial) -> Outcome:
    """Verify one pair of models."""
    correct = import_module(f"parity_tests.port.pairs.{trial.pair}")
    module = trial.fault.module() if trial.fault else correct
    inputs = correct.inputs(0, **trial.configuration)
    try:
        report = verify(
            module.flax_model(**trial.configuration),
            module.torch_model(**trial.configuration),
            inputs,
            reference=trial.reference,  # type: ignore[arg-type]
            strict=trial.fault is not None and trial.fault.strict,
        )
    except CannotCompare as error:
        return _refused(trial, str(error))
    return _judged(trial, report)


def _judged(trial: Trial, report: Report) -> Outcome:
    """Hold a report against what was planted."""
    fault, first = trial.fault, report.first
    causes = tuple(dict.fromkeys(finding.name for finding in report.causes))
    if first is not None:
        layers = [(first.flax.partition("#")[0], first.torch.partition("#")[0])]
    else:  # dropout and initial states are of no pass: the cause has the layer
        layers = [(f.flax, f.torch) for f in report.findings]
    layer = " = ".join(path or "the model" for path in layers[0]) if layers else ""
    place = fault is None or any(_same(paths, fault.layer) for paths in layers)
    named = fault is None or fault.cause is None or fault.cause in causes
    return Outcome(trial, not report.agree, layer, causes, place, named, str(report))


def _same(found: tuple[str, str], wanted: tuple[str, str]) -> bool:
    """Whether two layers are one; what is called on one side alone has one path."""
    return found == wanted or (
        found != ("", "") and all(f in ("", w) for f, w in zip(found, wanted, strict=True))
    )


def _refused(trial: Trial, text: str) -> Outcome:
    """Models that cannot be compared: a fault that must be refused, with the layer's name."""
    fault = trial.fault
    told = fault is not None and any(path and path in text for path in fault.layer)
    return Outcome(trial, True, "refused", (), told, told, text)


def run(quick: bool = False, seed: int = 0, only: str = "") -> int:
    """Plant every fault and look for it, then try pairs that are right, and print both as tables.

    Args:
        quick: one fault of each cause and a few correct configurations.
        seed: of the correct configurations.
        only: trials whose pair, name or cause contains this text.

    Returns:
        0 if all is found, in its place, by its name, and no correct pair raised an alarm; else 1.
    """
    trials = planted(representative() if quick else FAULTS) + correct(FEW if quick else MANY, seed)
    trials = [t for t in trials if only in f"{t.pair} {t.name} {t.fault and t.fault.cause}"]
    start = time.monotonic()
    outcomes = list(_attempts(trials))
    console = Console(width=None if sys.stdout.isatty() else 160)
    _print(outcomes, console)
    wrong = [outcome for outcome in outcomes if not outcome.right]
    for outcome in wrong:
        console.rule(f"{outcome.trial.pair}: {outcome.trial.name}")
        console.print(outcome.trial.configuration, outcome.trial.reference)
        console.print(outcome.text, markup=False, highlight=False, soft_wrap=True)
    seconds = time.monotonic() - start
    console.print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} right in {seconds:.0f} s")
    return int(bool(wrong))


def _attempts(trials: list[Trial]) -> Iterator[Outcome]:
    """In as many processes as cores, in order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores or 1, MOST_PROCESSES)
    with (
        ProcessPoolExecutor(workers, get_context("spawn"), _begin) as pool,
        closing(progress.track(trials, lambda trial: f"{trial.pair}: {trial.name}")) as tracked,
    ):
        results = pool.map(attempt, trials)
        for _, outcome in zip(tracked, results, strict=True):
            yield outcome


def _begin() -> None:
    """One thread a process; its programs are small and run a few times."""
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)


def representative() -> tuple[Fault, ...]:
    """The first fault of each cause."""
    first = {fault.cause: fault for fault in reversed(FAULTS)}
    return tuple(fault for cause, fault in first.items() if cause is not None)


def _print(outcomes: list[Outcome], console: Console) -> None:
    faults = [outcome for outcome in outcomes if outcome.trial.fault is not None]
    table = Table(title="planted faults")
    for heading in ("pair", "side", "planted", "found", "first layer that departs", "cause"):
        table.add_column(heading)
    for outcome in faults:
        fault = outcome.trial.fault
        assert fault is not None
        table.add_row(
            fault.pair,
            fault.side,
            fault.name,
            _colored("yes" if outcome.found else "no", outcome.found),
            _colored(outcome.layer or "none", outcome.place),
            _colored(", ".join(outcome.causes) or "none", outcome.named),
        )
    if faults:
        console.print(table)
    table = Table(title="correct pairs")
    for heading in ("pair", "configurations", "false alarms"):
        table.add_column(heading)
    for pair in PAIRS:
        some = [o for o in outcomes if o.trial.fault is None and o.trial.pair == pair]
        if some:
            alarms = sum(outcome.found for outcome in some)
            table.add_row(pair, str(len(some)), _colored(str(alarms), not alarms))
    if table.row_count:
        console.print(table)


def _colored(text: str, right: bool) -> str:
    return f"[{'green' if right else 'red'}]{text}{'' if right else ' (wrong)'}[/]"
