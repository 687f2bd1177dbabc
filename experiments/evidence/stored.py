"""The results of a sweep in a file: as it writes them, or packed for the repository."""

import gzip
import json
import math
from pathlib import Path

from experiments.errors import DataError
from experiments.evidence.entries import ENTRIES
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.sweep import Cell, Sweep
from experiments.records.runs import Record
from experiments.studies.study import Result

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
    return [_result(cell, [r for r in records if _cell(r) == cell]) for cell in cells], records


def _cell(record: Record) -> Cell:
    return Cell(*(record[name] for name in Cell._fields))


def _result(cell: Cell, records: list[Record]) -> Result:
    result = Result(cell, {}, {name: {} for name in Sweep.further})
    for record in records:
        index, loss = record["rate_index"], record["final_train_loss"]
        result.finals.setdefault(index, []).append(math.inf if loss is None else loss)
        for name in Sweep.further:
            result.further[name].setdefault(index, []).append(record[name])  # type: ignore[attr-defined]
    return result


def pack(records: list[Record], file: Path) -> None:
    """Write records as lines of JSON, compressed; the same records give the same bytes."""
    text = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))
