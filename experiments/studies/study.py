"""What the studies share: which cells there are to train, which are known already, what is left."""

import abc
import csv
import io
import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from matplotlib.figure import Figure
from rich.console import Console

from experiments.errors import ExperimentError
from experiments.options import StudyOptions
from experiments.records.content import content_key
from experiments.records.fields import ANYTHING, NUMBER, RUN, is_whole
from experiments.records.files import alone, prepare_folder, write_text
from experiments.records.provenance import provenance
from experiments.records.runs import Record, finite, read_records, write_records
from experiments.report.drawing import save
from experiments.report.progress import Progress, make_console
from experiments.report.tables import Table
from experiments.studies.grid import Finals, best_index, mean_loss, rate_of
from experiments.studies.tasks import TASKS
from experiments.training.trainer import Knobs, Runs, Trainer
from experiments.workloads import STUDIED, Workload

FINAL_LOSS = "final_train_loss"

Further = Mapping[str, dict[int, list[Any]]]
"""Name of a figure -> index of a rate -> what it is for each seed; None where it is not finite."""


class Result(NamedTuple):
    """What was found for a cell.

    Attributes:
        cell: the cell.
        finals: the final training loss at each rate that was tried.
        further: what else was measured there, see `Study.further`.
    """

    cell: Any
    finals: Finals
    further: Further = MappingProxyType({})

    @property
    def best(self) -> int:
        """Index of the best rate."""
        best = best_index(self.finals)
        if best is None:
            raise ExperimentError(f"{self.cell}: got no rate that trains, expected one")
        return best

    @property
    def loss(self) -> float:
        """Mean final loss at the best rate; inf where all diverged."""
        best = best_index(self.finals)
        return math.inf if best is None else mean_loss(self.finals, best)


class Study(abc.ABC):
    """One question about a knob, asked in many cells.

    A cell is a NamedTuple; its fields are the columns of the results. A cell that was trained is
    remembered in ``NAME.jsonl`` under the key of all that determines it (`content_key`), so
    another number of seeds, other data or other code are trained anew, and what is known is not.

    Attributes:
        name: of the files.
        further: names of what is measured of each run beside its final loss.
        columns: those of them that are columns of the CSV.
        judged_by: what `Result.finals` are called in the files.
        notes: what stands below the tables.
        options: as given on the command line.
        results: of the cells so far.
    """

    name: ClassVar[str]
    further: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ()
    judged_by: ClassVar[str] = FINAL_LOSS
    notes: ClassVar[str] = ""

    def __init__(self, options: StudyOptions) -> None:
        """Nothing is read or trained yet."""
        self.options = options
        self.results: dict[Any, Result] = {}
        self._workloads: dict[tuple[str, bool], Workload] = {}
        self._trainer: tuple[Hashable, Trainer] | None = None

    @abc.abstractmethod
    def cells(self) -> list[Any]:
        """Everything that is to be trained, in order."""

    @abc.abstractmethod
    def content(self, cell: Any) -> dict[str, Any]:
        """All that determines a cell, beside seeds, data and code: at least task, batch, steps."""

    @abc.abstractmethod
    def train(self, cell: Any) -> Result:
        """Train a cell; those before it are in `results`."""

    @abc.abstractmethod
    def tables(self, results: list[Result]) -> list[Table]:
        """What is printed."""

    @abc.abstractmethod
    def draw(self, results: list[Result]) -> Figure:
        """The same as a picture."""

    def pictures(self, results: list[Result]) -> dict[str, Callable[[], Figure]]:
        """What draws each picture, by the end of its name."""
        return {"": lambda: self.draw(results)}

    def key(self, content: dict[str, Any], origin: dict[str, Any]) -> str:
        """What a cell of this content is remembered under."""
        return content_key(origin, self.workload(content["task"]), content)

    def workload(self, task: str) -> Workload:
        """The data of a task, read once."""
        name, standardized = TASKS[task].workload, TASKS[task].standardized
        if (name, False) not in self._workloads:
            self._workloads[name, False] = STUDIED[name].load(self.options.data_dir)
        if (name, standardized) not in self._workloads:
            self._workloads[name, True] = self._workloads[name, False].standardized()
        return self._workloads[name, standardized]

    def trainer(self, group: Hashable, make: Callable[[], Trainer]) -> Callable[[Knobs], Runs]:
        """What trains knobs; cells of one group, one after the other, share it."""
        if self._trainer is None or self._trainer[0] != group:
            self._trainer = None  # lets the memory go first
            self._trainer = group, make()
        return self._trainer[1]

    @classmethod
    def main(cls, options: StudyOptions) -> int:
        """Run the study of some options."""
        return cls(options).run()

    def run(self, console: Console | None = None) -> int:
        """Train what is not known, print the tables, write ``.md``, ``.csv`` and ``.png``.

        Args:
            console: where to print; None: the terminal.

        Returns:
            The exit status: 0, or 130 after an interruption.

        Raises:
            ConfigError: for a folder that another run is writing to.
            DataError: for data or results that are missing or damaged.
            WriteError: for a full disk; what is in the file stays.
        """
        console = make_console(console)
        cells, content = self.cells(), self.content
        seeds, origin = self.options.seeds, provenance()
        keys = {
            cell: self.key({"seeds": seeds, **of}, origin)
            for cell, of in zip(cells, map(content, cells), strict=True)
        }
        prepare_folder(self.options.out)
        file = self.options.out / f"{self.name}.jsonl"
        with alone(file):
            return self._run(keys, file, origin, console)

    def _run(
        self, keys: dict[Any, str], file: Path, origin: dict[str, Any], console: Console
    ) -> int:
        fields = {**RUN, self.judged_by: NUMBER, **dict.fromkeys(self.further, ANYTHING)}
        records = read_records(file, fields, "remove the line, and what it is of is trained again")
        known: dict[str, list[Record]] = {}
        for record in records:
            known.setdefault(record["key"], []).append(record)
        lost = {key for key in keys.values() if key in known and not is_whole(known[key])}
        for key in lost:
            del known[key]
        records = [record for record in records if record["key"] not in lost]
        work = {key: _work(self.content(cell)) for cell, key in keys.items() if key not in known}
        others = len(set(known) - set(keys.values()))
        console.print(
            f"{len(keys)} cells; {sum(key in known for key in keys.values())} of them are in "
            f"{file}"
            + (f", beside {others} of other options, data or code" * (others > 0))
            + (f"; {len(lost)} have lost some of their runs and are trained again" * bool(lost)),
            highlight=False,
        )
        try:
            with Progress(sum(work.values()), console) as progress:
                for cell, key in keys.items():
                    if key in known:
                        self.results[cell] = result_of(
                            cell, known[key], self.further, self.judged_by
                        )
                        continue
                    begin, title = time.perf_counter(), ", ".join(_texts(cell))
                    progress.describe(title)
                    self.results[cell] = self.train(cell)
                    known[key] = _records(self.results[cell], key, origin, self.judged_by)
                    records += known[key]
                    write_records(file, records)
                    seconds = time.perf_counter() - begin
                    console.print(f"{title}: {self._found(cell)}; {seconds:.0f} s")
                    progress.advance(work[key])
        except KeyboardInterrupt:
            console.print(
                f"Stopped after {len(self.results)} of {len(keys)} cells, which are kept in "
                f"{file}; the same command goes on from there.",
                highlight=False,
            )
            return 130
        self._publish(console, origin)
        return 0

    def _found(self, cell: Any) -> str:
        result, name = self.results[cell], self.judged_by.replace("_", " ")
        best = best_index(result.finals)
        if best is None:
            return "diverged"
        return f"best rate {rate_of(best):.2g}, {name} {result.loss:.4g}"

    def _publish(self, console: Console, origin: dict[str, Any]) -> None:
        stem, results = self.options.out / self.name, list(self.results.values())
        tables = self.tables(results)
        note = f"{self.notes}Seeds: {self.options.seeds}; jaxnorm {origin['versions']['jaxnorm']}, "
        note += f"JAX {origin['versions']['jax']}, {origin['device']}.\n"
        text = "\n".join([*(table.markdown() for table in tables), note])
        write_text(stem.with_suffix(".md"), text)
        write_text(
            stem.with_suffix(".csv"), _comma_separated(results, self.columns, self.judged_by)
        )
        files = [
            file
            for end, draw in self.pictures(results).items()
            for file in save(draw, stem.with_name(self.name + end), (".png",))
        ]
        console.print(*tables, sep="\n")
        names = [f"{self.name}.md", f"{self.name}.csv", *(path.name for path in files)]
        console.print(f"written to {stem.parent}: {', '.join(names)}", highlight=False)


def grouped(results: list[Result], field: str) -> dict[Any, list[Result]]:
    """The results of each value of a field of their cells."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(getattr(result.cell, field), []).append(result)
    return groups


def _work(content: dict[str, Any]) -> float:
    """What a cell costs, for the time left: samples that are seen, and what each step takes."""
    return content["steps"] * (content["batch_size"] + 32)


def _texts(cell: Any) -> list[str]:
    return ["plain" if value is None else str(value) for value in cell]


def _records(result: Result, key: str, origin: dict[str, Any], judged_by: str) -> list[Record]:
    """One for each run."""
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        {
            "key": key,
            **result.cell._asdict(),
            "rate_index": index,
            "seed": seed,
            "runs": sum(map(len, result.finals.values())),
            judged_by: finite(loss),
            **{name: of[index][seed] for name, of in result.further.items()},
            "finished": finished,
            **origin,
        }
        for index, seed, loss in _runs(result)
    ]


def result_of(
    cell: Any, records: Iterable[Record], further: Iterable[str], judged_by: str = FINAL_LOSS
) -> Result:
    """What the records of a cell say."""
    result = Result(cell, {}, {name: {} for name in further})
    for record in records:
        index, loss = record["rate_index"], record[judged_by]
        result.finals.setdefault(index, []).append(math.inf if loss is None else loss)
        for name, of in result.further.items():
            of.setdefault(index, []).append(record[name])
    return result


def _runs(result: Result) -> list[tuple[int, int, float]]:
    """(index of the rate, seed, final loss) of each run."""
    finals = result.finals.items()
    return [(index, seed, loss) for index, losses in finals for seed, loss in enumerate(losses)]


def _comma_separated(results: list[Result], columns: tuple[str, ...], judged_by: str) -> str:
    """A line for every run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*results[0].cell._fields, "rate", "seed", *columns, judged_by])
    for result in results:
        for index, seed, loss in _runs(result):
            more = [result.further[name][index][seed] for name in columns]
            shown = ["" if value is None else f"{value:.5g}" for value in more]
            row = [*_texts(result.cell), f"{rate_of(index):.4g}", seed, *shown, f"{loss:.5g}"]
            writer.writerow(row)
    return file.getvalue()
