"""What the fields of a record may be, so that a damaged line is named."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a field may be.

    Attributes:
        expected: in words.
        fine: whether a value is that.
    """

    expected: str
    fine: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _is_time(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


ANYTHING = Kind("anything", lambda value: True)
TEXT = Kind("a text", lambda value: isinstance(value, str))
INTEGER = Kind("a whole number", lambda value: type(value) is int)
NUMBER = Kind("a number or null", _is_number)
CURVE = Kind("a list of numbers", _is_curve)
TIME = Kind("a time with its zone", _is_time)

RUN = {"key": TEXT, "rate_index": INTEGER, "seed": INTEGER}
"""What every study's records have, beside what was found."""


def one_of(*names: str) -> Kind:
    """One of some names."""
    return Kind("one of " + ", ".join(names), lambda value: value in names)


def check(record: Any, kinds: Mapping[str, Kind]) -> None:
    """Refuse what no study has written.

    Raises:
        ValueError: the message names the field.
    """
    for name, kind in kinds.items():
        if not isinstance(record, dict) or name not in record:
            raise ValueError(f"it has no {name}")
        if not kind.fine(record[name]):
            raise ValueError(f"got {record[name]!r} for {name}, expected {kind.expected}")


def is_whole(records: list[dict[str, Any]]) -> bool:
    """Whether the records of a cell are all that were written: none twice, none lost."""
    count = records[0].get("runs", len(records))
    seeds: dict[int, set[int]] = {}
    for record in records:
        seeds.setdefault(record["rate_index"], set()).add(record["seed"])
    every = set(range(max(map(len, seeds.values()))))
    return len(records) == count and all(some == every for some in seeds.values())
