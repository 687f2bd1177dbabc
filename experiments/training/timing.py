"""The seconds of single runs that are compiled, taking turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LEAST, MOST = 3, 11
"""How often each run is timed."""

BUDGET = 10.0
"""After so many seconds no further round begins, once there are `LEAST`."""


def median_seconds(
    runs: Mapping[str, Callable[[], Any]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The median over rounds, in each of which every run is timed once.

    Args:
        runs: each returns when it is done.
        clock: says the time in seconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    begin = clock()
    for done in range(MOST):
        if done >= LEAST and clock() - begin > BUDGET:
            break
        for name, run in runs.items():
            start = clock()
            run()
            taken[name].append(clock() - start)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}
