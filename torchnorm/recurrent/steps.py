"""One step of a recurrent layer: PyTorch's equations, and each neuron's slope told to its layer.

The slope of a neuron is the derivative of its own gate, the cell's sigmoid or tanh, at the sum of
what the input and the state bring, times what that gate is multiplied by, as in any gated unit: i
by the candidate of an LSTM and the candidate by i, f by the old state, o by the new one; of a GRU r
by the recurrent half of the candidate. Its z weighs two states against each other, and has its own
derivative.
"""

from typing import Any

import torch

from torchnorm.backward.deferred import tell_gate

#: (z, handle) of a product.
Told = tuple[torch.Tensor, torch.Tensor]


def lstm(given: Told, recurrent: Told, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(o tanh(c'), c'), before any projection: c' = f c + i g."""
    u = given[0] + recurrent[0]
    with torch.no_grad():
        i, f, g, o = u.chunk(4, -1)
        new = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        slopes = _sigmoid(i) * g.tanh(), _sigmoid(f) * cell, _tanh(g) * i.sigmoid()
        slope = torch.cat([*slopes, _sigmoid(o) * new.tanh()], -1)
    u = tell_gate(tell_gate(u, given[1], slope=slope), recurrent[1], slope=slope)
    i, f, g, o = u.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru(given: Told, recurrent: Told, state: torch.Tensor) -> torch.Tensor:
    """(1 - z) n + z h, n = tanh(x_n + r h_n)."""
    (x, x_handle), (h, h_handle) = given, recurrent
    with torch.no_grad():
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        first = [_sigmoid(x_r + h_r) * h_n, _sigmoid(x_z + h_z)]
        n = _tanh(x_n + r * h_n) * (1 - z)
    x = tell_gate(x, x_handle, slope=torch.cat([*first, n], -1))
    h = tell_gate(h, h_handle, slope=torch.cat([*first, n * r], -1))
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return n + z * (state - n)


def rnn(given: Told, recurrent: Told, nonlinearity: str) -> torch.Tensor:
    """Tanh or relu of the sum."""
    u = given[0] + recurrent[0]
    for _, handle in (given, recurrent):
        u = tell_gate(u, handle, gate=nonlinearity)
    return u.tanh() if nonlinearity == "tanh" else u.relu()


def _sigmoid(z: torch.Tensor) -> torch.Tensor:
    s = z.sigmoid()
    return s * (1 - s)


def _tanh(z: torch.Tensor) -> torch.Tensor:
    return 1 - z.tanh() ** 2


def plain(told: Any) -> torch.Tensor:
    """The z of a product behind which no activation comes."""
    z, handle = told
    return tell_gate(z, handle, slope=torch.ones_like(handle))
