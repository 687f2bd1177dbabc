"""Recurrent layers: the order of the gates, and what the carry begins with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import torch

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.functions import ONES, SPLITS, ZEROS

_LSTM, _GRU = torch._VF.lstm, torch._VF.gru  # type: ignore[attr-defined]
_RNN = (torch._VF.rnn_tanh, torch._VF.rnn_relu)  # type: ignore[attr-defined]
_LAYERS = (_LSTM, _GRU, *_RNN, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_CELLS = (torch.lstm_cell, torch.gru_cell)


class GateOrder(Cause):
    """PyTorch stacks i, f, g, o (LSTM) and r, z, n (GRU)."""

    name = "order of gates"
    mend = "stack the gates as PyTorch does: i, f, g, o (LSTM), r, z, n (GRU)"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """All other orders."""
        for call in case.calls(*_LAYERS, *_CELLS)[:1]:
            weights = _weights(call)
            names = "ifgo" if weights[0].shape[0] == 4 * weights[1].shape[1] else "rzn"
            for order in permutations(range(len(names))):
                if list(order) == sorted(order):
                    continue

                def change(function: Function, order: tuple[int, ...] = order) -> Any:
                    return _with_weights(
                        function, [_reordered(w, order) for w in _weights(function)]
                    )

                text = f"where PyTorch has {', '.join(names)}, Flax has "
                text += ", ".join(names[n] for n in order)
                yield Hypothesis(text, only((*_LAYERS, *_CELLS), change))

        for call in case.calls(*SPLITS)[:1]:
            parts = call.again()
            for order in permutations(range(len(parts))):
                if list(order) == sorted(order) or len(order) not in (3, 4):
                    continue

                def reorder(function: Function, order: tuple[int, ...] = order) -> Any:
                    parts = function.again()
                    return tuple(parts[n] for n in order)

                text = f"the parts that PyTorch splits into are Flax's parts {order} (from 0)"
                yield Hypothesis(text, only(SPLITS, reorder))


class InitialCarry(Cause):
    """The carry begins with something else than zeros."""

    name = "initial states"
    mend = "begin with zeros on both sides, or give both the same carry"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Ones in all of it, or in one of the two."""
        for call in case.calls(*_LAYERS)[:1]:
            carry = call.args[1]
            count = len(carry) if isinstance(carry, (tuple, list)) else 1
            for ones in range(1, 2**count):

                def change(function: Function, ones: int = ones) -> Any:
                    carry = function.args[1]
                    if isinstance(carry, (tuple, list)):
                        new = [
                            torch.ones_like(c) if ones >> n & 1 else c for n, c in enumerate(carry)
                        ]
                    else:
                        new = torch.ones_like(carry)
                    return function.function(
                        function.args[0], new, *function.args[2:], **function.kwargs
                    )

                text = "PyTorch's carry begins with zeros, Flax's with ones"
                yield Hypothesis(text, only(_LAYERS, change))
        for mine, other, sides in (
            (ZEROS, torch.ones_like, "PyTorch begins with zeros, Flax with ones"),
            (ONES, torch.zeros_like, "PyTorch begins with ones, Flax with zeros"),
        ):
            if case.calls(*mine):

                def begin(function: Function, other: Any = other) -> Any:
                    return other(function.again())

                yield Hypothesis(sides, only(mine, begin))


def _weights(function: Function) -> list[Any]:
    if function.function in _CELLS:
        return [w for w in function.args[2:] if w is not None]
    return list(function.args[2])


def _with_weights(function: Function, weights: list[Any]) -> Any:
    if function.function in _CELLS:
        return function.function(*function.args[:2], *weights)
    args = [*function.args]
    args[2] = weights
    return function.function(*args, **function.kwargs)


def _reordered(weight: Any, order: tuple[int, ...]) -> Any:
    parts = weight.chunk(len(order))
    return torch.cat([parts[n] for n in order])
