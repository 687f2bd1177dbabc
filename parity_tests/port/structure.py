"""What a model returns, as a flat list: arrays, tuples, mappings, dataclasses, nested.

The same walk for both frameworks, so that what they return can be compared entry by entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from parity_tests.port.errors import CannotCompare


def flatten(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """[(name, array)] of everything in a result; None is nothing.

    Args:
        value: an array of NumPy, JAX or PyTorch; a tuple or list; a mapping (transformers'
            ``ModelOutput`` is one); a dataclass; these nested.
        name: what comes before the names in it.

    Raises:
        CannotCompare: for anything else.
    """
    if value is None:
        return []
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return [(name, value)]
    if isinstance(value, (int, float, bool)):
        return []
    if isinstance(value, Mapping):
        items = [(str(key), each) for key, each in value.items()]
    elif hasattr(value, "_asdict"):
        items = list(value._asdict().items())
    elif isinstance(value, (tuple, list)):
        items = [(str(n), each) for n, each in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    else:
        raise CannotCompare(
            f"outputs: got {type(value).__name__} at {name or 'the top'!r}, expected arrays, "
            "tuples, mappings or dataclasses of them; let the model return one of these"
        )
    return [
        entry for key, each in items for entry in flatten(each, f"{name}.{key}" if name else key)
    ]


def named(value: Any) -> bool:
    """Whether the entries of a result have names of their own, beside their places."""
    if isinstance(value, Mapping) or hasattr(value, "_asdict"):
        return True
    return dataclasses.is_dataclass(value) and not hasattr(value, "shape")
