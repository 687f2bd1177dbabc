"""The reference's numbers on both sides, and the order of layers that only their order tells apart.

Where both sides do not agree, and layers of the same shapes were paired by their order, exchanging
two of them may make them agree: one side calls its shortcut first, say.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from parity_tests.port import checks
from parity_tests.port.checks import Setting
from parity_tests.port.pairing import Pairing
from parity_tests.port.sides.base import Arrays

#: So many passes are spent on it.
TRIES = 200


@dataclass(frozen=True)
class Numbers:
    """The reference's parameters and states, and whether each side has its own instead."""

    parameters: Arrays
    states: Arrays
    given_parameters: bool = False
    given_states: bool = False


def copy(setting: Setting, numbers: Numbers) -> None:
    """Give both sides the same numbers, by the pairing of the setting."""
    setting.parameters = _both(setting, numbers.parameters, numbers.given_parameters, state=False)
    setting.states = _both(setting, numbers.states, numbers.given_states, state=True)


def _both(setting: Setting, arrays: Arrays, given: bool, *, state: bool) -> tuple[Arrays, Arrays]:
    """(Flax's, PyTorch's)."""
    flax, torch, pairing = setting.flax, setting.torch, setting.pairing
    if given:
        return (flax.states, torch.states) if state else (flax.parameters, torch.parameters)
    if setting.reference == "torch":
        return pairing.to_flax(flax, arrays, state=state), arrays
    return arrays, pairing.to_torch(torch, arrays, state=state)


def arrange(setting: Setting, numbers: Numbers) -> int:
    """Exchange layers until both sides agree; how many are exchanged then, 0 if it was for nothing.

    Outputs in eval mode are compared. Exchanges that bring them nearer to each other stay; if they
    never come to agree, the first pairing does.
    """
    if not setting.pairing.groups:
        return 0
    first = setting.pairing
    error, tries, better = _error(setting), 0, True
    while error > setting.gate and better:
        better = False
        for group in first.groups:
            for a, b in combinations(group, 2):
                if tries >= TRIES or error <= setting.gate:
                    break
                before, tries = setting.pairing, tries + 1
                setting.pairing = before.exchanged(a, b)
                copy(setting, numbers)
                new = _error(setting)
                if new < error:
                    error, better = new, True
                else:
                    setting.pairing = before
        better = better and tries < TRIES
    if error > setting.gate:
        setting.pairing = first
    copy(setting, numbers)
    return _moved(first, setting.pairing)


def _error(setting: Setting) -> float:
    found = checks.one_mode(setting, "eval", outputs_only=True)
    return max(check.distance.error for check in found)


def _moved(before: Pairing, after: Pairing) -> int:
    return sum(a.torch is not b.torch for a, b in zip(before.pairs, after.pairs, strict=True))
