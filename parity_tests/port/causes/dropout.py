"""Dropout: left on in eval mode, absent in train mode, or of another rate.

It draws, so it is left out of all numbers; what is compared is where it is at work.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from parity_tests.port.measure import Distance
from parity_tests.port.report import Check, Finding

if TYPE_CHECKING:
    from parity_tests.port.checks import Setting
    from parity_tests.port.sides.base import Dropped, Run

LEFT_ON, OTHER = "dropout left on", "dropout rate"


def dropouts(setting: Setting, mode: str) -> tuple[list[Check], list[Finding]]:
    """(a comparison of the rates at work in a mode, why they differ)."""
    ours, theirs = setting.runs[mode]
    if not ours.dropped and not theirs.dropped:
        return [], []
    rates = [sorted(d.rate for d in run.dropped) for run in (ours, theirs)]
    equal = rates[0] == rates[1]
    check = Check(
        f"dropout, {mode} mode", "the rates at work", Distance(0.0 if equal else np.inf), 0.0
    )
    if equal:
        return [check], []
    sides = (("Flax", ours, theirs), ("PyTorch", theirs, ours))
    for side, run, other in sides:
        more = [_finding(setting, mode, side, d, other) for d in _more(run, other)]
        if more:  # of another rate, one side tells it
            return [check], more
    return [check], []


def _more(run: Run, other: Run) -> list[Dropped]:
    """Those of a run whose rates the other has not as often."""
    left = Counter(d.rate for d in other.dropped)
    found = []
    for dropped in run.dropped:
        if left[dropped.rate]:
            left[dropped.rate] -= 1
        else:
            found.append(dropped)
    return found


def _finding(setting: Setting, mode: str, side: str, dropped: Dropped, other: Run) -> Finding:
    """One dropout that only one side has at work; confirmed by what it does when it draws."""
    number = 0 if side == "Flax" else 1
    model = (setting.flax, setting.torch)[number]
    drawn = model.run(
        setting.parameters[number],
        setting.states[number],
        setting.inputs[number],
        train=mode == "train",
        dropout=True,
    )
    silent = setting.runs[mode][number]
    confirmed = any(
        not np.array_equal(a, b)
        for (_, a), (_, b) in zip(drawn.outputs, silent.outputs, strict=True)
    )
    opposite = "PyTorch" if side == "Flax" else "Flax"
    rates = ", ".join(f"{d.rate:g}" for d in other.dropped) or "none"
    text = f"{side} drops {dropped.rate:g} at {dropped.path or 'the top'!r} in {mode} mode"
    if mode == "eval":
        name = LEFT_ON
        mend = "pass deterministic=True (Flax) or training=self.training (F.dropout) in eval mode"
    else:
        name = OTHER
        text += f", {opposite} has the rates {rates}"
        mend = "rate= in Flax is p= in PyTorch: both are the share that is dropped"
    paths = (dropped.path, "") if side == "Flax" else ("", dropped.path)
    return Finding(name, confirmed, f"{text}; without it they are compared above", mend, *paths)
