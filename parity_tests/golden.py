"""The golden files: inputs and expected outputs that were computed before either package existed.

They lie beside the repository, or where the environment variable JAXNORM_GOLDEN says; a user's
machine has none, and the tests that need them say so and are skipped.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity_tests.oracle import Knobs
from parity_tests.patches import Convolution, Dense

#: The manifest's names for our knobs, where they differ.
NAMES = {
    "kappa": "shrinkage",
    "eps_rel": "damping",
    "eps_abs": "epsilon",
    "rows": "statistics_rows",
}
#: The manifest's names for the geometry of a convolution; it pads by 1 unless it says otherwise.
GEOMETRY = {
    "stride": "strides",
    "pad": "padding",
    "dilation": "kernel_dilation",
    "groups": "feature_group_count",
}
PAD = ((1, 1), (1, 1))


class Golden(NamedTuple):
    """One golden file with what its manifest says."""

    name: str
    gate: str
    knobs: Knobs
    op: Dense | Convolution
    arrays: dict[str, np.ndarray]


def folder() -> Path:
    """Where the golden files are, or would be."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "golden"
    return Path(os.environ.get("JAXNORM_GOLDEN", beside))


@cache
def names(op: str) -> tuple[str, ...]:
    """Names of the files of one operation, "dense" or "conv2d"; none where there is no folder."""
    manifest = folder() / "manifest.json"
    if not manifest.is_file():
        return ()
    return tuple(entry["name"] for entry in json.loads(manifest.read_text()) if entry["op"] == op)


@cache
def read(name: str) -> Golden:
    """One golden file."""
    entries = json.loads((folder() / "manifest.json").read_text())
    knobs: dict[str, Any] = dict(next(entry for entry in entries if entry["name"] == name))
    del knobs["name"]
    dense = knobs.pop("op") == "dense"
    gate = knobs.pop("activation", "relu")
    how = {GEOMETRY[key]: knobs.pop(key) for key in GEOMETRY if key in knobs}
    how["padding"] = tuple(map(tuple, how.get("padding", PAD)))
    op = Dense() if dense else Convolution(**how)
    with np.load(folder() / f"{name}.npz") as file:
        arrays = dict(file)
    if knobs.get("gradient") == "covariant":
        knobs["gradient"] = "standardized"
    ours: dict[str, Any] = {NAMES.get(key, key): value for key, value in knobs.items()}
    return Golden(name, gate, Knobs(**ours), op, arrays)
