"""The seconds of a step of each method alone on the machine, compilation apart."""

import json
import os
from pathlib import Path

from rich.console import Console

from experiments.errors import DataError
from experiments.evidence import stored
from experiments.evidence.entries import ENTRIES
from experiments.evidence.outcomes import Found, outcomes
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.sweep import Sweep, held_out, make_trainer
from experiments.evidence.tables import Seconds
from experiments.options import SweepOptions
from experiments.records.files import write_text
from experiments.records.provenance import provenance
from experiments.report.progress import make_console
from experiments.training.timing import median_seconds

FILE = "seconds.json"


def measure(options: SweepOptions, console: Console | None = None) -> int:
    """Time every method of the problems that are known, taking turns; write ``seconds.json``.

    One compiled run of one seed from its first step to its last, at the method's best rate, divided
    by its steps: the steps in which statistics are taken have their share.

    Raises:
        DataError: for a folder without the results of a sweep.
    """
    console = make_console(console)
    results, _ = stored.read(options.out / "sweep.jsonl")
    found = outcomes(results)
    sweep = Sweep(options)
    timed: Seconds = {}
    for problem in options.problems:
        if problem not in found:
            console.print(f"{problem}: left out, its baselines have not been run", highlight=False)
            continue
        timed[problem] = _time(sweep, problem, found[problem])
        plain = timed[problem].get("plain")
        shown = [f"{name} {value / plain:.2f}" for name, value in timed[problem].items() if plain]
        console.print(f"{problem}: {', '.join(shown)}, in steps of plain", highlight=False)
        content = {"seconds": timed, "load": os.getloadavg(), **provenance()}
        write_text(options.out / FILE, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return 0


def _time(sweep: Sweep, name: str, found: Found) -> dict[str, float]:
    problem, ready = PROBLEMS[name], {}
    workload = sweep.workload(problem.task)
    for method, outcome in found.outcomes.items():
        entry = ENTRIES[method]
        learned, _ = held_out(workload, entry.standardized)
        ready[method] = make_trainer(problem, entry, learned, seeds=1).alone(outcome.rate)
    return {method: each / problem.steps for method, each in median_seconds(ready).items()}


def read(folder: Path) -> Seconds:
    """What was measured; nothing where no such file is.

    Raises:
        DataError: for a damaged file.
    """
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))["seconds"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); make it anew with sweep --seconds") from error
