"""The comparison itself: every method trained, then one table, the plots and the records."""

import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.methods import METHODS, build
from experiments.options import CompareConfig, MethodName, Plan
from experiments.records.files import prepare_folder, write_text
from experiments.records.provenance import provenance
from experiments.records.runs import Record, make_records, write_records
from experiments.report import comparison as report
from experiments.report import plots
from experiments.report.summary import MethodSummary, summarize
from experiments.training.trainer import predict, train_method
from experiments.workloads import WORKLOADS, Workload

PARTIAL = "runs.partial.jsonl"
"""The runs of the methods that have finished, until all have."""

RUNS = "runs.jsonl"
"""All runs; the last file to appear."""


def run(config: CompareConfig, console: Console | None = None) -> int:
    """Run a comparison and write its results.

    Args:
        config: the options.
        console: where to print; None: the terminal.

    Returns:
        The exit status: 0, or 130 after an interruption.

    Raises:
        ConfigError: for options that cannot work.
        DataError: for data that is missing or damaged.
    """
    begin = time.perf_counter()
    # Not on a terminal, rich assumes 80 columns and would break the table.
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    plan = config.resolved()
    workload = WORKLOADS[plan.workload].load(plan.data_dir)
    workload.batches(0, plan.steps, plan.batch_size)  # a batch too large is told now
    prepare_folder(plan.out)
    comparison = _Comparison(plan, workload, console)
    try:
        comparison.train_all()
        files = comparison.finish()
    except BaseException as error:
        comparison.tell_what_is_kept()
        if isinstance(error, KeyboardInterrupt):
            return 130
        raise
    console.print(f"{time.perf_counter() - begin:.0f} s in all; written to {plan.out}:")
    console.print("  " + ", ".join(file.name for file in files), highlight=False)
    return 0


class _Comparison:
    """What has been trained so far."""

    def __init__(self, plan: Plan, workload: Workload, console: Console) -> None:
        self.plan, self.workload, self.console = plan, workload, console
        self.records: list[Record] = []
        self.pictures: dict[str, np.ndarray] = {}
        self.origin = provenance()

    def train_all(self) -> None:
        """Train one method after the other, with a progress bar."""
        steps = self.plan.steps * len(self.plan.rates) * self.plan.seeds
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        with bar:
            task = bar.add_task("", total=steps * len(self.plan.methods))
            for name in self.plan.methods:
                bar.update(task, description=f"{METHODS[name].title:<12}")
                self._train(name, partial(bar.advance, task))

    def _train(self, name: MethodName, on_progress) -> None:
        plan, workload = self.plan, self.workload
        model = build(name, width=plan.width, depth=plan.depth, outputs=workload.outputs)
        runs = train_method(model, workload, plan, on_progress)
        records = make_records(name, workload, plan, runs, self.origin)
        self.records += records
        write_records(plan.out / PARTIAL, self.records)
        (summary,) = summarize(records)
        self.console.print(report.line(summary), highlight=False)
        if summary.best is not None:
            # The first seed's network, whichever seed did best.
            chosen = plan.rates.index(summary.best), 0
            variables = jax.tree.map(lambda leaf: leaf[chosen], runs.variables)
            picture = workload.picture(partial(predict, model, variables))
            if picture is not None:
                self.pictures[name] = picture

    def finish(self) -> list[Path]:
        """Print the table, write every file, and return the files."""
        plan, workload, out = self.plan, self.workload, self.plan.out
        summaries = self.print_table()
        write_text(out / "table.md", report.markdown(summaries, workload, plan))
        files = plots.plot_all(out, summaries, workload, plan, self.pictures)
        (out / PARTIAL).replace(out / RUNS)
        return [out / "table.md", *files, out / RUNS]

    def print_table(self) -> list[MethodSummary]:
        """Print the table of the methods that have finished, and return their summaries."""
        summaries = summarize(self.records)
        table = report.terminal_table(summaries, self.workload, self.plan)
        self.console.print(table, highlight=False)
        for text in report.notes(self.plan):
            self.console.print(f"- {text}", highlight=False)
        for text in report.warnings(summaries):
            self.console.print(f"- [bold]Warning:[/bold] {text}", highlight=False)
        return summaries

    def tell_what_is_kept(self) -> None:
        """Say what is left of a comparison that did not come to its end."""
        done = list(dict.fromkeys(record["method"] for record in self.records))
        if not done:
            text = "Stopped before the first method had finished; nothing was written."
        else:
            self.print_table()
            text = (
                f"Stopped after {len(done)} of {len(self.plan.methods)} methods "
                f"({', '.join(done)}). Their runs are kept in {self.plan.out / PARTIAL}; "
                "table.md, the plots and runs.jsonl were not written."
            )
        self.console.print(text, highlight=False)
