"""Random numbers in place of constants, which would hide what departs."""

from __future__ import annotations

import numpy as np

from parity_tests.port.sides.base import Arrays, is_float


def randomized(arrays: Arrays, seed: int, *, statistics: bool = False) -> tuple[Arrays, int]:
    """(arrays in which no float array is constant, how many were changed).

    A bias of zero hides that it is missing, a scale of one hides its axis. A variance stays
    positive.

    Args:
        arrays: by name.
        seed: of what is drawn.
        statistics: whether they are running statistics; then others are left as they are.
    """
    generator = np.random.default_rng(seed)
    found, changed = dict(arrays), 0
    for name, array in arrays.items():
        leaf = name.replace("/", ".").rpartition(".")[2].removeprefix("running_")
        if not is_float(array) or not array.size or np.any(array != array.flat[0]):
            continue
        if statistics and leaf not in ("mean", "var"):
            continue
        noise = generator.standard_normal(array.shape)
        new = np.exp(0.3 * noise) * array if leaf == "var" else array + 0.2 * noise
        found[name] = np.asarray(new, array.dtype)
        changed += 1
    return found, changed
