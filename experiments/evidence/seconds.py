"""The seconds of a step of each method alone on the machine, compilation apart."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.errors import DataError
from experiments.evidence import stored
from experiments.evidence.entries import ENTRIES
from experiments.evidence.options import SweepOptions
from experiments.evidence.outcomes import Found, outcomes
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.sweep import Sweep, held_out, make_trainer
from experiments.evidence.tables import Seconds
from experiments.records.files import alone, write_text
from experiments.records.provenance import provenance
from experiments.report.progress import make_console
from experiments.training.timing import median_seconds

FILE = "seconds.json"


def measure(options: SweepOptions, console: Console | None = None) -> int:
    """Time the methods of the problems that are known, taking turns; write ``seconds.json``.

    One compiled run of one seed from its first step to its last, at the method's best rate, divided
    by its steps: the steps in which statistics are taken have their share. What the file knows of
    other problems stays.

    Raises:
        ConfigError: for a folder that a sweep is writing to.
        DataError: for a folder without the results of a sweep.
    """
    console = make_console(console)
    found = outcomes(stored.read(options.out).results)
    with alone(options.out / f"{Sweep.name}.jsonl"):
        _measure(options, found, console)
    return 0


def _measure(options: SweepOptions, found: dict[str, Found], console: Console) -> None:
    sweep = Sweep(options)
    content = _content(options.out)
    timed, origins = content["seconds"], content["origins"]
    for problem in options.problems:
        if problem not in found:
            console.print(f"{problem}: left out, its baselines have not been run", highlight=False)
            continue
        timed[problem] = _time(sweep, problem, found[problem])
        plain = timed[problem].get("plain")
        shown = [f"{name} {value / plain:.2f}" for name, value in timed[problem].items() if plain]
        console.print(f"{problem}: {', '.join(shown)}, in steps of plain", highlight=False)
        origins[problem] = {"load": os.getloadavg(), **provenance()}
        _write(options.out, content)


def _time(sweep: Sweep, name: str, found: Found) -> dict[str, float]:
    problem, ready = PROBLEMS[name], {}
    workload = sweep.workload(problem.task)
    for method, outcome in found.outcomes.items():
        if method not in ("plain", *sweep.options.methods):
            continue
        entry = ENTRIES[method]
        learned, _ = held_out(workload, entry.standardized)
        ready[method] = make_trainer(problem, entry, learned, seeds=1).alone(outcome.rate)
    return {method: each / problem.steps for method, each in median_seconds(ready).items()}


def read(*folders: Path) -> Seconds:
    """What was measured; nothing where no such file is. Of a problem the last folder counts.

    Raises:
        DataError: for a damaged file.
    """
    return _join(folders)["seconds"]


def pack(folders: Iterable[Path], out: Path) -> None:
    """Write what `read` returns, and where it is from; nothing if there is nothing."""
    content = _join(folders)
    if content["seconds"]:
        _write(out, content)


def _join(folders: Iterable[Path]) -> dict[str, Any]:
    contents = [_content(folder) for folder in folders]
    names = "seconds", "origins"
    return {name: {k: v for one in contents for k, v in one[name].items()} for name in names}


def _content(folder: Path) -> dict[str, Any]:
    """The seconds of each problem, and the origins of these."""
    file = folder / FILE
    if not file.exists():
        return {"seconds": {}, "origins": {}}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        timed, origins = content["seconds"], content.get("origins", {})
        numbers = [float(each) for of in timed.values() for each in of.values()]
        if not all(0 < number < math.inf for number in numbers):
            raise ValueError("not all of the seconds are positive")
        return {"seconds": timed, "origins": dict(origins)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({error}); make it anew with sweep --seconds") from error


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_text(folder / FILE, json.dumps(content, indent=1, sort_keys=True) + "\n")
