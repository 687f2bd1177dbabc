"""`LSTMCell`, `GRUCell` and `RNNCell`, whose gates can be seen."""

from typing import Any

import torch
from torch import nn

from torchnorm.recurrent import steps
from torchnorm.recurrent.products import RecurrentProduct, Unfused


class _Cell(Unfused):
    hidden_size: int
    ih: RecurrentProduct
    hh: RecurrentProduct

    def _state(self, input: torch.Tensor, state: Any) -> torch.Tensor:
        if state is not None:
            return state
        return input.new_zeros(*input.shape[:-1], self.hidden_size)


class LSTMCell(_Cell, nn.LSTMCell):
    """`torch.nn.LSTMCell` with the neuron-wise rule. As `LSTM`, one step.

    Example:
        >>> import torch, torchnorm
        >>> h, c = torchnorm.recurrent.LSTMCell(3, 4)(torch.ones(2, 3))
        >>> h.shape
        torch.Size([2, 4])
    """

    def forward(self, input: torch.Tensor, hx: Any = None) -> Any:
        """(h, c) after an input [..., I]."""
        if not self.is_seen():
            return super().forward(input, hx)
        h, c = (self._state(input, each) for each in (hx or (None, None)))
        return steps.lstm(self.ih(input), self.hh(h), c)


class GRUCell(_Cell, nn.GRUCell):
    """`torch.nn.GRUCell` with the neuron-wise rule. As `LSTMCell`.

    Example:
        >>> import torch, torchnorm
        >>> torchnorm.recurrent.GRUCell(3, 4)(torch.ones(2, 3)).shape
        torch.Size([2, 4])
    """

    def forward(self, input: torch.Tensor, hx: Any = None) -> torch.Tensor:
        """The state after an input [..., I]."""
        if not self.is_seen():
            return super().forward(input, hx)
        h = self._state(input, hx)
        return steps.gru(self.ih(input), self.hh(h), h)


class RNNCell(_Cell, nn.RNNCell):
    """`torch.nn.RNNCell` with the neuron-wise rule. As `LSTMCell`.

    Example:
        >>> import torch, torchnorm
        >>> torchnorm.recurrent.RNNCell(3, 4, nonlinearity="relu")(torch.ones(2, 3)).shape
        torch.Size([2, 4])
    """

    def forward(self, input: torch.Tensor, hx: Any = None) -> torch.Tensor:
        """The state after an input [..., I]."""
        if not self.is_seen():
            return super().forward(input, hx)
        return steps.rnn(self.ih(input), self.hh(self._state(input, hx)), self.nonlinearity)
