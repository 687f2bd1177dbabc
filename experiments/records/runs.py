"""One record for every run: what goes into ``runs.jsonl``, and all that tables and plots read."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import DataError
from experiments.options import Plan
from experiments.records.fields import Kind, check
from experiments.records.files import write_text
from experiments.training.trainer import Runs
from experiments.workloads import Workload

Record = dict[str, Any]
"""The JSON object of one run. Numbers that are not finite are None (null)."""


def make_records(
    method: str, key: str, workload: Workload, plan: Plan, runs: Runs, origin: dict[str, Any]
) -> list[Record]:
    """Describe every run of a method.

    Args:
        method: its name on the command line.
        key: see `experiments.records.content`.
        workload: what was learned.
        plan: what was done.
        runs: what came out.
        origin: see `experiments.provenance`.
    """
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    assert runs.scores is not None
    return [
        {
            "key": key,
            "workload": workload.name,
            "method": method,
            "rate": rate,
            "seed": seed,
            **judged(runs.losses[row, seed], workload, plan),
            "test_name": workload.test_name,
            "test": finite(runs.scores[row, seed]),
            "seconds_together": round(runs.seconds, 3),
            "compile_seconds": round(runs.compile_seconds, 3),
            "runs_together": runs.scores.size,
            "finished": finished,
            **origin,
            "curve": [finite(loss) for loss in runs.losses[row, seed]],
        }
        for row, rate in enumerate(plan.rates)
        for seed in range(plan.seeds)
    ]


def judged(losses: np.ndarray, workload: Workload, plan: Plan) -> Record:
    """The part of a record that follows from the losses [T] and the options that judge them."""
    final = finite(losses[-plan.tail_steps :].mean(dtype=np.float64))
    figure = None if final is None else workload.train_figure(final)
    return {
        "diverged": not math.isfinite(losses[-1]),
        "steps_to_target": steps_to_target(losses, plan.target_loss, plan.window),
        "final_train_loss": final,
        "final_train_figure": None if figure is None else finite(figure[1]),
        # Folders on somebody's disk say nothing about a run.
        "config": {
            name: value
            for name, value in dataclasses.asdict(plan).items()
            if name not in ("data_dir", "out")
        },
    }


def judge_again(record: Record, workload: Workload, plan: Plan) -> Record:
    """A record as it would be under other options that judge; it is not trained again."""
    losses = np.array([math.inf if loss is None else loss for loss in record["curve"]])
    return record | judged(losses, workload, plan)


def running_mean(losses: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` losses at each step [T]; NaN before there are so many.

    Args:
        losses: [T]; inf stays inf.
        window: number of steps; runs shorter than that have a window of their own length.
    """
    window = min(window, len(losses))
    means = np.full(len(losses), np.nan)
    frames = np.lib.stride_tricks.sliding_window_view(losses, window)
    means[window - 1 :] = frames.mean(axis=-1, dtype=np.float64)
    return means


def steps_to_target(losses: np.ndarray, target: float, window: int) -> int | None:
    """Steps made until the running mean of the losses first lies below a target; None if never."""
    below = np.flatnonzero(running_mean(losses, window) < target)
    return int(below[0]) + 1 if below.size else None


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a JSON line for each run; the file is replaced as a whole."""
    write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def read_records(
    path: Path, kinds: Mapping[str, Kind], remedy: str = "remove the file to begin anew"
) -> list[Record]:
    """Read what `write_records` wrote; nothing where there is no such file.

    Args:
        path: the file.
        kinds: what each record must have.
        remedy: what to do about a damaged line.

    Raises:
        DataError: for a file that is damaged or not ours; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return parse_records(text, path, kinds, remedy)


def parse_records(text: str, path: Path, kinds: Mapping[str, Kind], remedy: str) -> list[Record]:
    """The records in the text of a file; see `read_records`."""
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(json.loads(line))
            check(records[-1], kinds)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is damaged ({error}); {remedy}") from error
    return records


def rounded(values: Any) -> Any:
    """Nested lists of numbers as exact as tables need them, None for what is not finite."""
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return finite(f"{values:.5g}")


def finite(value: Any) -> float | None:
    """A float that JSON can hold, as exact as float32 is; None if not finite."""
    value = float(value)
    return float(f"{value:.9g}") if math.isfinite(value) else None
