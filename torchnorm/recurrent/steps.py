"""One step of a recurrent layer: PyTorch's equations, and each neuron's slope told to its layer.

The slope of a neuron is the derivative of its own gate, the cell's sigmoid or tanh, at the sum of
what the input and the state bring. What the gate multiplies after that (i the candidate of an LSTM,
o its state) is not part of it: it is the state's, not the neuron's. Only the recurrent half of a
GRU's candidate is multiplied by r *before* the tanh, so r belongs to its slope.
"""

from typing import Any

import torch

from torchnorm.backward.deferred import tell_gate

#: (z, handle) of a product.
Told = tuple[torch.Tensor, torch.Tensor]


def lstm(given: Told, recurrent: Told, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(o tanh(c'), c'), before any projection: c' = f c + i g."""
    u = given[0] + recurrent[0]
    i, f, g, o = u.detach().chunk(4, -1)
    slope = torch.cat([_sigmoid(i), _sigmoid(f), _tanh(g), _sigmoid(o)], -1)
    u = tell_gate(tell_gate(u, given[1], slope=slope), recurrent[1], slope=slope)
    i, f, g, o = u.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru(given: Told, recurrent: Told, state: torch.Tensor) -> torch.Tensor:
    """(1 - z) n + z h, n = tanh(x_n + r h_n)."""
    (x, x_handle), (h, h_handle) = given, recurrent
    with torch.no_grad():
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
        r = (x_r + h_r).sigmoid()
        first, n = [_sigmoid(x_r + h_r), _sigmoid(x_z + h_z)], _tanh(x_n + r * h_n)
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
