"""The results of a sweep in a file: as it writes them, or packed for the repository."""

import gzip
import json
from pathlib import Path

from experiments.errors import DataError
from experiments.evidence.entries import ENTRIES
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.sweep import Cell, Sweep
from experiments.records.runs import Record
from experiments.studies.study import Result, result_of

_NEEDED = {*Cell._fields, *Sweep.further, "key", "rate_index", "final_train_loss", "seed"}


def read(file: Path) -> tuple[list[Result], list[Record]]:
    """(results, in the order of the protocol, and the records that they are made from).

    Of a cell that was run twice, with other code or data, the last one counts.

    Raises:
        DataError: for a file that is missing, damaged, or no sweep's.
    """
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
        records = [json.loads(line) for line in text.splitlines() if line]
    except FileNotFoundError as error:
        raise DataError(
            f"{file}: no such file; make it with python -m experiments sweep"
        ) from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error}); make it anew with a sweep") from error
    for number, record in enumerate(records, 1):
        missing = _NEEDED - record.keys() if isinstance(record, dict) else _NEEDED
        if missing:
            raise DataError(
                f"{file}, line {number}: got no {sorted(missing)[0]}, expected a sweep's"
            )
    last = {_cell(record): record["key"] for record in records}
    records = [record for record in records if record["key"] == last[_cell(record)]]
    cells = [cell for cell in last if cell.problem in PROBLEMS and cell.method in ENTRIES]
    order = list(PROBLEMS), list(ENTRIES), ["screen", "final"]
    cells.sort(key=lambda cell: [of.index(name) for of, name in zip(order, cell, strict=True)])
    of = {cell: [record for record in records if _cell(record) == cell] for cell in cells}
    return [result_of(cell, some, Sweep.further) for cell, some in of.items()], records


def _cell(record: Record) -> Cell:
    return Cell(*(record[name] for name in Cell._fields))


def pack(records: list[Record], file: Path) -> None:
    """Write records as lines of JSON, compressed; the same records give the same bytes."""
    text = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))
