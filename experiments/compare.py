"""The comparison: every method trained or read, then one table, the plots and the records."""

import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import jax
from rich.console import Console

from experiments.errors import ConfigError
from experiments.methods import METHODS
from experiments.networks.mlp import MLP
from experiments.options import CompareConfig, MethodName, Plan
from experiments.records.content import content_key
from experiments.records.fields import ANYTHING, CURVE, TEXT
from experiments.records.files import alone, prepare_folder, write_text
from experiments.records.pictures import from_text, to_text
from experiments.records.provenance import provenance
from experiments.records.runs import (
    Record,
    finite,
    judge_again,
    make_records,
    read_records,
    write_records,
)
from experiments.report import comparison as report
from experiments.report import plots
from experiments.report.progress import Progress, make_console
from experiments.report.summary import MethodSummary, summarize
from experiments.training.method import Alone, time_steps, train_method
from experiments.training.trainer import predict
from experiments.workloads import WORKLOADS, Workload

PARTIAL = "runs.partial.jsonl"
"""The runs of the methods that have finished, until all have."""

RUNS = "runs.jsonl"
"""All runs; the last file to appear."""

_FIELDS = {"method": TEXT, "config": ANYTHING, "curve": CURVE}


def run(config: CompareConfig, console: Console | None = None) -> int:
    """Run a comparison and write its results; what the folder holds of it is not trained again.

    Args:
        config: the options.
        console: where to print; None: the terminal.

    Returns:
        The exit status: 0, or 130 after an interruption.

    Raises:
        ConfigError: for options that cannot work, or a folder with runs of other options.
        DataError: for data or records that are missing or damaged.
    """
    begin = time.perf_counter()
    console = make_console(console)
    plan = config.resolved()
    workload = WORKLOADS[plan.workload].load(plan.data_dir)
    workload.batches(0, plan.steps, plan.batch_size)  # a batch too large is told now
    prepare_folder(plan.out)
    with alone(plan.out / RUNS):
        return _run(plan, workload, console, begin)


def _run(plan: Plan, workload: Workload, console: Console, begin: float) -> int:
    comparison = _Comparison(plan, workload, console)
    try:
        comparison.train_all()
        comparison.time_all()
        files = comparison.finish()
    except BaseException as error:
        comparison.tell_what_is_left()
        if isinstance(error, KeyboardInterrupt):
            return 130
        raise
    console.print(f"{time.perf_counter() - begin:.0f} s in all; written to {plan.out}:")
    console.print("  " + ", ".join(file.name for file in files), highlight=False)
    return 0


class _Comparison:
    """What has been trained so far, and what the folder knows."""

    def __init__(self, plan: Plan, workload: Workload, console: Console) -> None:
        self.plan, self.workload, self.console = plan, workload, console
        self.records: list[Record] = []
        self.origin = provenance()
        self.keys = {
            name: content_key(self.origin, workload, {"method": name, **plan.training})
            for name in METHODS
        }
        self.known = self._read()

    def _read(self) -> dict[str, list[Record]]:
        """The records of the folder by their methods, the unfinished ones first."""
        known: dict[str, list[Record]] = {}
        for name in (PARTIAL, RUNS):
            file, found = self.plan.out / name, {}
            for record in read_records(file, _FIELDS):
                check_options(file, record, self.plan)
                found.setdefault(record["method"], []).append(record)
            for method, records in found.items():
                if self.keys.get(method) == records[0].get("key"):
                    again = [judge_again(record, self.workload, self.plan) for record in records]
                    known.setdefault(method, again)
                elif method not in known:
                    text = f"{method}: made with other data, code, versions or device; not used"
                    self.console.print(f"{file}: {text}", highlight=False)
        return known

    def train_all(self) -> None:
        """Train one method after the other, with a progress bar; a method that is known, not."""
        steps = self.plan.steps * len(self.plan.rates) * self.plan.seeds
        missing = sum(name not in self.known for name in self.plan.methods)
        with Progress(steps * missing, self.console) as progress:
            for name in self.plan.methods:
                progress.describe(METHODS[name].title)
                known = name in self.known
                self.records += self.known[name] if known else self._train(name, progress.advance)
                self._write()
                (summary,) = summarize([r for r in self.records if r["method"] == name])
                text = report.line(summary) + "; not trained again" * known
                self.console.print(text, highlight=False)

    def time_all(self) -> None:
        """Time a step of each method alone, at its best rate, unless that is known.

        All of them together or none: only then is the machine the same for all.
        """
        if not self.plan.timing:
            return
        summaries = {s.method: s for s in summarize(self.records) if s.best is not None}
        steps = {name: summary.steps_to_time for name, summary in summaries.items()}
        stamps = {record.get("timed") for record in self.records}
        known = {r["method"]: r.get("steps_timed") for r in self.records}
        if len(stamps) == 1 and None not in stamps and all(known[n] == steps[n] for n in steps):
            return
        self.console.print("timing a step of each method alone", highlight=False)
        runs = {
            name: Alone(self._model(name), summary.best, steps[name])
            for name, summary in summaries.items()
            if summary.best is not None
        }
        seconds = time_steps(runs, self.workload, self.plan)
        stamp = datetime.now(UTC).isoformat()
        for record in self.records:
            name = record["method"]
            record["seconds_per_step"] = finite(seconds[name]) if name in seconds else None
            record["steps_timed"], record["timed"] = steps.get(name), stamp
        self._write()

    def _model(self, name: str) -> MLP:
        plan = self.plan
        sizes = {"width": plan.width, "depth": plan.depth, "outputs": self.workload.outputs}
        return METHODS[name].network(**sizes)

    def _train(self, name: MethodName, on_progress) -> list[Record]:
        plan, workload = self.plan, self.workload
        model = self._model(name)
        runs = train_method(model, workload, plan, on_progress)
        records = make_records(name, self.keys[name], workload, plan, runs, self.origin)
        (summary,) = summarize(records)
        if summary.best is not None:
            # The first seed's network, whichever seed did best.
            chosen = plan.rates.index(summary.best), 0
            variables = jax.tree.map(lambda leaf: leaf[chosen], runs.variables)
            picture = workload.picture(partial(predict, model, variables))
            if picture is not None:
                summary.runs[0]["picture"] = to_text(picture)
        return records

    def _write(self) -> None:
        """All that is known, also of methods that come later or were not asked for."""
        done = {record["method"] for record in self.records}
        others = [record for name in self.known if name not in done for record in self.known[name]]
        write_records(self.plan.out / PARTIAL, self.records + others)

    def finish(self) -> list[Path]:
        """Print the table, write every file, and return the files."""
        plan, workload, out = self.plan, self.workload, self.plan.out
        summaries = self.print_table()
        write_text(out / "table.md", report.markdown(summaries, workload, plan))
        pictures = {r["method"]: from_text(r["picture"]) for r in self.records if "picture" in r}
        files = plots.plot_all(out, summaries, workload, plan, pictures)
        (out / PARTIAL).replace(out / RUNS)
        return [out / "table.md", *files, out / RUNS]

    def print_table(self) -> list[MethodSummary]:
        """Print the table of the methods that have finished, and return their summaries."""
        summaries = summarize(self.records)
        self.console.print(report.table(summaries, self.workload, self.plan))
        for text in report.notes(self.plan, summaries):
            self.console.print(f"- {text}", highlight=False)
        for text in report.warnings(summaries):
            self.console.print(f"- [bold]Warning:[/bold] {text}", highlight=False)
        return summaries

    def tell_what_is_left(self) -> None:
        """Say what there is of a comparison that did not come to its end."""
        done = list(dict.fromkeys(record["method"] for record in self.records))
        if not done:
            text = "Stopped before the first method had finished; nothing was written."
        else:
            self.print_table()
            text = (
                f"Stopped after {len(done)} of {len(self.plan.methods)} methods "
                f"({', '.join(done)}). Their runs are in {self.plan.out / PARTIAL}; table.md, the "
                "plots and runs.jsonl were not written. The same command goes on from there."
            )
        self.console.print(text, highlight=False)


def check_options(file: Path, record: Record, plan: Plan) -> None:
    """Refuse to mix runs of different options in one folder.

    Raises:
        ConfigError: for a record of other options; the message has both.
    """
    theirs = {name: record["config"].get(name) for name in plan.training}
    differ = [name for name, value in plan.training.items() if theirs[name] != value]
    if not differ:
        return
    got = ", ".join(f"{name} {theirs[name]}" for name in differ)
    asked = ", ".join(f"{name} {plan.training[name]}" for name in differ)
    raise ConfigError(
        f"--out: {file} holds runs with {got}, but asked for was {asked}; name another folder, or "
        "remove that one"
    )
