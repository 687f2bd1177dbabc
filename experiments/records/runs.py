"""One record for every run: what goes into ``runs.jsonl``, and all that tables and plots read."""

import dataclasses
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import DataError
from experiments.options import Plan
from experiments.records.files import write_text
from experiments.training.trainer import Runs
from experiments.workloads import Workload

Record = dict[str, Any]
"""The JSON object of one run. Numbers that are not finite are None (null)."""


def make_records(
    method: str, workload: Workload, plan: Plan, runs: Runs, origin: dict[str, Any]
) -> list[Record]:
    """Describe every run of a method.

    Args:
        method: its name on the command line.
        workload: what was learned.
        plan: what was done.
        runs: what came out.
        origin: see `experiments.records.provenance`.
    """
    options = {
        name: value
        for name, value in dataclasses.asdict(plan).items()
        if name not in ("data_dir", "out")  # folders on somebody's disk say nothing about a run
    }
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    records = []
    for row, rate in enumerate(plan.rates):
        for seed in range(plan.seeds):
            losses = runs.losses[row, seed]
            final = _number(losses[-plan.tail_steps :].mean(dtype=np.float64))
            figure = None if final is None else workload.train_figure(final)
            records.append(
                {
                    "workload": workload.name,
                    "method": method,
                    "rate": rate,
                    "seed": seed,
                    "diverged": not math.isfinite(losses[-1]),
                    "steps_to_target": steps_to_target(losses, plan.target_loss, plan.window),
                    "final_train_loss": final,
                    "final_train_figure": None if figure is None else _number(figure[1]),
                    "test_name": workload.test_name,
                    "test": _number(runs.test[row, seed]),
                    "seconds_together": round(runs.seconds, 3),
                    "compile_seconds": round(runs.compile_seconds, 3),
                    "runs_together": runs.test.size,
                    "finished": finished,
                    "config": options,
                    **origin,
                    "curve": [_number(loss) for loss in losses],
                }
            )
    return records


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


def read_records(path: Path) -> list[Record]:
    """Read what `write_records` wrote.

    Raises:
        DataError: for a file that is missing or damaged; the message names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}: line {number} is damaged ({error})") from error
    return records


def _number(value: Any) -> float | None:
    """A float that JSON can hold, at most as exact as float32 can tell; None if not finite."""
    value = float(value)
    return float(f"{value:.8g}") if math.isfinite(value) else None
