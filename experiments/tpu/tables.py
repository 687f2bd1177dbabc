"""The tables of what was compiled."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from experiments.bench import schedule
from experiments.bench.methods import METHODS
from experiments.report.tables import Table
from experiments.tpu.cells import Cell
from experiments.tpu.collectives import KINDS, PERMUTE
from experiments.tpu.programs import Program

Column = Callable[[Cell, Cell, str | None], str]

NOTHING = "-"
DETAILS = {
    schedule.WITH: "step with statistics",
    schedule.WITHOUT: "step without",
}
SHARDINGS = {
    "one": "one device",
    "data": "batch sharded",
    "fsdp": "batch, parameters and state sharded",
}


@dataclass(frozen=True)
class Shown:
    """Everything that is shown.

    Attributes:
        cells: all of them, in order.
        devices: of each target: how many.
        dtype: in which the networks compute.
        exported: the largest difference of each exported step, by its file.
    """

    cells: list[Cell]
    devices: dict[str, int]
    dtype: str
    exported: dict[str, float]

    def tables(self) -> list[Table]:
        """One for each target and sharding."""
        groups = dict.fromkeys((cell.target, cell.sharding) for cell in self.cells)
        return [self._table(*group) for group in groups]

    def markdown(self) -> str:
        """All of it, for a file."""
        parts = [f"**{table.title}**\n\n{table.markdown()}" for table in self.tables()]
        return "\n".join([*parts, "".join(f"- {note}\n" for note in self.notes())])

    def _table(self, target: str, sharding: str) -> Table:
        cells = [c for c in self.cells if (c.target, c.sharding) == (target, sharding)]
        columns = _columns(cells, timed=self._timed, alone=sharding == "one")
        rows = []
        for cell in cells:
            plain = next(c for c in cells if (c.network, c.method) == (cell.network, "plain"))
            title = f"{cell.network.title}: {METHODS[cell.method].title}"
            if cell.problem is not None or cell.whole is None:
                rows.append([title, _in_short(cell), *[""] * (len(columns) - 1)])
                continue
            kinds = {None: title}
            if cell.every > 1:
                kinds |= {part: f"{title}, {words}" for part, words in DETAILS.items()}
            for part, words in kinds.items():
                rows.append([words, *(of(cell, plain, part) for of in columns.values())])
        over = "" if sharding == "one" else f" over {self.devices[target]} devices"
        title = f"{target}, {SHARDINGS[sharding]}{over}: a step, on each device, {self.dtype}"
        return Table(["network: method", *columns], rows, title)

    def notes(self) -> Iterator[str]:
        """What a reader has to know."""
        yield (
            "The compiler's numbers, and what stands beside them as a part of plain's. Bytes are "
            "of all fusions, what stays on the chip counts too; memory is of arguments, results "
            "and what is between. Of a collective the bytes are those of the whole array."
        )
        averaged = "time, FLOPs, bytes" if self._timed else "FLOPs, bytes"
        yield (
            f"Where statistics are taken in some steps only, {averaged} and "
            f"collectives are averages over the first {schedule.RUN} steps of a run: the two kinds "
            "of steps are compiled by themselves. Memory, collectives and the seconds of compiling "
            "are those of the program that is run, which has both; of its collectives those inside "
            "of a condition are sent in steps with statistics only."
        )
        yield (
            "Of a condition the compiler counts the larger branch: in the neurons' coordinates "
            "also the work for a bias that may not move, which is hardly ever done."
        )
        for cell in self.cells:
            if cell.problem is not None:
                name = f"{METHODS[cell.method].title} in {cell.network.title}"
                yield f"{name} ({cell.target}, {cell.sharding}): {cell.problem.rstrip('.')}."
        if self.exported:
            worst = max(self.exported.values())
            yield (
                f"Exported, read again and run on the CPU: {len(self.exported)} steps; the largest "
                f"difference is {worst:.1g} of the largest number of an array."
            )

    @property
    def _timed(self) -> bool:
        return any(p.seconds is not None for c in self.cells for p in c.programs.values())


def line(cell: Cell) -> str:
    """What was found of a cell, in a line."""
    name = f"{cell.target}, {cell.sharding}, {cell.network.title}, {METHODS[cell.method].title}"
    if cell.problem is not None or cell.whole is None:
        return f"{name}: {cell.problem}"
    seconds = sum(program.compile_seconds for program in cell.programs.values())
    return f"{name}: compiled in {seconds:.0f} s"


def _columns(cells: list[Cell], *, timed: bool, alone: bool) -> dict[str, Column]:
    """What each column shows of a cell beside plain's: of a part of it, or the average."""
    columns: dict[str, Column] = {}
    if timed:
        columns["time"] = _number(lambda program: program.seconds, "s")
    columns["FLOPs"] = _number(lambda program: program.flops)
    columns["bytes"] = _number(lambda program: program.bytes_accessed)
    columns["memory"] = _of_whole(lambda program: program.peak_bytes)
    for kind in KINDS:
        if kind != PERMUTE and any(cell.sent(schedule.WITH)[kind] for cell in cells):
            columns[kind] = _sent(kind)
    if not alone:
        columns[f"{PERMUTE}s"] = _permutes
    columns["compile (s)"] = _of_whole(lambda program: program.compile_seconds)
    return columns


def _number(of: Callable[[Program], float | None], unit: str = "") -> Column:
    def text(cell: Cell, plain: Cell, part: str | None) -> str:
        value = cell.average(of) if part is None else cell.part(part, of)
        return _beside(value, plain.average(of), unit)

    return text


def _of_whole(of: Callable[[Program], float | None]) -> Column:
    def text(cell: Cell, plain: Cell, part: str | None) -> str:
        value, unit = (each.part(schedule.ALIKE, of) for each in (cell, plain))
        return _beside(value, unit) if part is None else ""

    return text


def _sent(kind: str) -> Column:
    def text(cell: Cell, plain: Cell, part: str | None) -> str:
        value = cell.average_sent(kind) if part is None else cell.sent(part)[kind]
        return _beside(value, plain.average_sent(kind))

    return text


def _permutes(cell: Cell, plain: Cell, part: str | None) -> str:
    del plain
    if part is not None or cell.whole is None:
        return ""
    return str(cell.whole.collectives.most.counts[PERMUTE])


def _in_short(cell: Cell) -> str:
    """Out of memory is said in the cell, what takes more words below the table."""
    return "out of memory" if cell.problem == "out of memory" else NOTHING


def _beside(value: float | None, unit: float | None, letter: str = "") -> str:
    """A number, and what it is of plain's."""
    if value is None:
        return NOTHING
    ratio = f" ({value / unit:.2f})" if unit else ""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{letter}".strip() + ratio
    return f"{value:.3g}{letter}{ratio}"
