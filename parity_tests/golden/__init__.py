"""The golden files: inputs and expected outputs that no package and no oracle has computed.

README.md beside them says what they hold; `python -m parity_tests.golden` compares the oracle with
them.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity_tests import oracle
from parity_tests.oracle import Convolution, Dense, Knobs
from parity_tests.tolerances import slice_error

FOLDER = Path(__file__).parent
#: Arrays that go in; all others are expected.
INPUTS = ("x", "kernel", "bias", "delta")
#: A file from when `statistics_rows` meant the first rows, for the layer's moments too.
FIRST_ROWS = "dense_09"


class Golden(NamedTuple):
    """One golden file with what the manifest says of it.

    Attributes:
        name: of the file.
        gate: the activation that follows.
        knobs: of the rule.
        op: the operation.
        arrays: what goes in, and what is expected.
        counted: of how many samples, the first ones, the statistics are; None: of all.
    """

    name: str
    gate: str
    knobs: Knobs
    op: Dense | Convolution
    arrays: dict[str, np.ndarray]
    counted: int | None = None

    @property
    def neuron_mask(self) -> np.ndarray | None:
        """What says so to a layer, [N]; None where all samples count."""
        return None if self.counted is None else np.arange(len(self.arrays["x"])) < self.counted


@cache
def _manifest() -> dict[str, Any]:
    entries = json.loads((FOLDER / "manifest.json").read_text())
    return {entry["name"]: entry for entry in entries}


def names(operation: str | None = None) -> tuple[str, ...]:
    """Names of the files, of one operation ("dense" or "conv2d") or of both."""
    entries = _manifest().items()
    return tuple(name for name, entry in entries if operation in (None, entry["operation"]))


@cache
def read(name: str) -> Golden:
    """One golden file."""
    entry = _manifest()[name]
    op: Dense | Convolution = Dense()
    if entry["operation"] == "conv2d":
        geometry = entry["geometry"]
        op = Convolution(**geometry | {"padding": tuple(map(tuple, geometry["padding"]))})
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    rule, counted = entry["rule"], None
    if name == FIRST_ROWS:
        counted, rule = rule["statistics_rows"], rule | {"statistics_rows": None}
    return Golden(name, entry["gate"], Knobs(**rule), op, arrays, counted)


def errors(file: Golden) -> dict[str, float]:
    """Of everything that the file expects: how far off the oracle is; no relief."""
    x, kernel, bias, delta = (file.arrays[key] for key in INPUTS)
    if file.counted is None:
        view = file.op.view(x.shape, kernel.shape)
        layer = oracle.linear(view, x, kernel, bias, delta, file.gate, file.knobs)
    else:
        rest = (file.gate, file.knobs)
        layer = oracle.dense(x, kernel, bias, delta, *rest, counted=file.neuron_mask)
    return {
        key: slice_error(getattr(layer, key), value, axes=() if value.ndim == 1 else (-1,))
        for key, value in file.arrays.items()
        if key not in INPUTS
    }
