"""Does AdamW in neuron coordinates do at least as well as plain AdamW?

Every run of a pair begins with the same parameters and sees the same batches of the same task. The
loss of a run is the mean over its last five batches, none of which was seen before. Two runs are
compared by the logarithm of the ratio of their losses, over seeds: beyond what the seeds' spread
explains (Student's t, 95 percent) and beyond one percent, it is better or worse.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np

from parity_tests.models.outcome import Network

STEPS = 50
#: The loss is a mean over so many last batches.
LAST = 5
#: Below this, a difference does not matter, however sure it is.
MATTERS = 0.01
#: 97.5 percent of Student's t, by degrees of freedom.
STUDENT = {1: 12.7, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


@dataclass(frozen=True)
class Pair:
    """Losses at one rate, one of each seed."""

    rate: float
    plain: list[float]
    ours: list[float]

    @property
    def differences(self) -> np.ndarray:
        """What is added to the loss, in shares of it; positive is worse."""
        plain, ours = np.array(self.plain), np.array(self.ours)
        if min(plain.min(), ours.min()) > 0:
            return np.log(ours) - np.log(plain)
        return (ours - plain) / np.abs(plain).mean()  # a likelihood or a return, of either sign

    @property
    def verdict(self) -> str:
        """Better, as good within the seeds' spread, or worse."""
        if not np.isfinite(self.ours).all():
            return "worse (diverges)"
        if not np.isfinite(self.plain).all():
            return "better (plain diverges)"
        difference, count = self.differences, len(self.plain)
        quantile = STUDENT.get(count - 1, 2.0) if count > 1 else math.inf
        spread = quantile * difference.std(ddof=1) / math.sqrt(count) if count > 1 else math.inf
        mean = float(difference.mean())
        if abs(mean) <= max(spread, MATTERS):
            return "as good"
        return "worse" if mean > 0 else "better"

    @property
    def losses(self) -> str:
        """Medians."""
        return f"{np.median(self.plain):.3g} -> {np.median(self.ours):.3g}"


@dataclass
class Trained:
    """What came of one network; `error` is what it raised."""

    label: str
    task: str
    rate: float
    pairs: list[Pair] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    @property
    def worse(self) -> bool:
        """At both rates."""
        return bool(self.pairs) and all(pair.verdict.startswith("worse") for pair in self.pairs)


def train(network: Network, seeds: int) -> Trained:
    """Both rates, plain and in neuron coordinates."""
    trial = network.trial
    assert trial is not None
    result, start = Trained(network.label, trial.task, trial.rate), time.perf_counter()
    try:
        for rate in (trial.rate, trial.rate / 10):
            losses = [
                [trial.run(seed, rate, ours) for seed in range(seeds)] for ours in (False, True)
            ]
            result.pairs.append(Pair(rate, *losses))
    except Exception as error:  # as in the other table
        result.error = f"crash: {error!r}"
    result.seconds = time.perf_counter() - start
    return result
