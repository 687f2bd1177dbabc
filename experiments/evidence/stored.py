"""The results of a sweep in files: as it writes them, packed for the repository, in parts."""

import gzip
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import DataError
from experiments.evidence.entries import ENTRIES
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.sweep import FINAL, SCREENED, Cell, Sweep
from experiments.records.fields import CURVE, NUMBER, RUN, TEXT, TIME, is_whole, one_of
from experiments.records.files import write_bytes
from experiments.records.runs import Record, parse_records
from experiments.studies.grid import best_index, rate_of
from experiments.studies.study import Result, result_of

STAGES = {"screen": SCREENED, "final": FINAL}
"""The stages and their seeds."""
_FIELDS = {
    **RUN,
    **dict.fromkeys(("problem", "method"), TEXT),
    **dict.fromkeys(("final_train_loss", *Sweep.further), NUMBER),
    "curve": CURVE,
    "stage": one_of(*STAGES),
    "finished": TIME,
}
_SUFFIXES = (".jsonl", ".jsonl.gz")


class Stored(NamedTuple):
    """What lies in some files, joined.

    Attributes:
        results: of the cells, in the order of the protocol.
        records: that they are made from, in the same order; then those of unknown names.
        notes: what a reader should know: what was passed over, what does not fit together.
    """

    results: list[Result]
    records: list[Record]
    notes: list[str]


class _Run(NamedTuple):
    """A cell as it was run once.

    Attributes:
        finished: when.
        order: among all runs, as they were read.
        file: where.
        records: by index of the rate and seed.
    """

    finished: datetime
    order: int
    file: Path
    records: dict[tuple[int, int], Record]


def read(*paths: Path) -> Stored:
    """The results in files and folders, joined cell by cell.

    Of a cell that was run more than once, with other code or on another machine, the run that
    finished last counts, as a whole; the order of the files does not matter. One that has lost
    lines does not count.

    Args:
        paths: files, or folders: what is called sweep*.jsonl or sweep*.jsonl.gz there or below.

    Raises:
        DataError: for a file that is missing, damaged, or no sweep's; the message names the line.
    """
    runs = _runs_in(files_of(*paths))
    notes: list[str] = []
    counted: dict[Cell, list[Record]] = {}
    repeated = 0
    for cell in sorted(runs, key=_place):
        whole = []
        for run in sorted(runs[cell]):
            if _is_whole(cell, run.records):
                whole.append([record for _, record in sorted(run.records.items())])
            else:
                notes.append(
                    f"{_title(cell)}: {run.file} has lost some of its runs; it is passed over"
                )
        repeated += len(whole) > 1
        if whole:
            counted[cell] = whole[-1]
    if repeated:
        notes.append(
            f"{repeated} of {len(counted)} cells were run more than once; the run that finished "
            "last counts"
        )
    known = {cell: some for cell, some in counted.items() if _known(cell)}
    if len(known) < len(counted):
        strange = ", ".join("/".join(cell) for cell in counted if cell not in known)
        notes.append(f"not of this protocol, and left out: {strange}")
    results = {cell: result_of(cell, some, Sweep.further) for cell, some in known.items()}
    notes += _unfit(results)
    return Stored(list(results.values()), [r for some in counted.values() for r in some], notes)


def _runs_in(files: Iterable[Path]) -> dict[Cell, list[_Run]]:
    runs: dict[tuple[Cell, str, str], _Run] = {}
    for file in files:
        for record in _records(file):
            cell = Cell(*(record[name] for name in Cell._fields))
            name = cell, record["key"], record["finished"]
            run = runs.setdefault(
                name, _Run(datetime.fromisoformat(record["finished"]), len(runs), file, {})
            )
            run.records[record["rate_index"], record["seed"]] = record
    by_cell: dict[Cell, list[_Run]] = {}
    for (cell, _, _), run in runs.items():
        by_cell.setdefault(cell, []).append(run)
    return by_cell


def files_of(*paths: Path) -> list[Path]:
    """Files themselves; of folders, the results in them. Each once.

    Raises:
        DataError: for a folder without results.
    """
    return list(dict.fromkeys(file for path in paths for file in _files(path)))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("sweep*") if file.name.endswith(_SUFFIXES))
    if not files:
        raise DataError(
            f"{path}: got no sweep*.jsonl and no sweep*.jsonl.gz in this folder, expected results; "
            "make them with python -m experiments sweep"
        )
    return files


def _records(file: Path) -> list[Record]:
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
    except FileNotFoundError as error:
        raise DataError(
            f"{file}: no such file; make it with python -m experiments sweep"
        ) from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error}); make it anew with a sweep") from error
    remedy = "remove the line, and a sweep into this file trains again what it is of"
    return parse_records(text, file, _FIELDS, remedy)


def _is_whole(cell: Cell, records: dict[tuple[int, int], Record]) -> bool:
    """Whether nothing is lost: all seeds of the stage, in the final one at a single rate."""
    rates, seeds = (set(column) for column in zip(*records, strict=True))
    return (
        is_whole(list(records.values()))
        and seeds == set(range(STAGES[cell.stage]))
        and (cell.stage == "screen" or len(rates) == 1)
    )


def _known(cell: Cell) -> bool:
    return cell.problem in PROBLEMS and cell.method in ENTRIES


def _place(cell: Cell) -> tuple[Any, ...]:
    """In the order of the protocol; unknown names come last, by themselves."""
    if not _known(cell):
        return 1, cell
    order = list(PROBLEMS), list(ENTRIES), list(STAGES)
    return 0, tuple(of.index(name) for of, name in zip(order, cell, strict=True))


def _unfit(results: dict[Cell, Result]) -> list[str]:
    """Final runs that are not those of the screen beside them."""
    notes = []
    for cell, result in results.items():
        if cell.stage != "final":
            continue
        screen = results.get(cell._replace(stage="screen"))
        if screen is None:
            notes.append(f"{_title(cell)}: the screen that its rate is from is not there")
            continue
        best, (index,) = best_index(screen.finals), result.finals
        if best is not None and best != index:
            notes.append(
                f"{_title(cell)}: run at the rate {rate_of(index):.2g}, but the best of its screen "
                f"is {rate_of(best):.2g}: they are of two sweeps; run it again"
            )
    return notes


def _title(cell: Cell) -> str:
    return ", ".join(cell)


def pack(records: list[Record], file: Path) -> None:
    """Write records as lines of JSON, compressed; the same records give the same bytes."""
    text = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    write_bytes(file, gzip.compress(text.encode(), mtime=0))
