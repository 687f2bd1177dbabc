"""A recurrent network with a head: nnx beside PyTorch; gates, their order, initial states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn


class FlaxLSTM(nnx.Module):
    """Sequences [N, T, C] to outputs, from the last hidden state."""

    def __init__(
        self, *, channels: int, width: int, depth: int, outputs: int, rngs: nnx.Rngs
    ) -> None:
        self.width = width
        self.cells = nnx.List(
            [
                nnx.OptimizedLSTMCell(width if layer else channels, width, rngs=rngs)
                for layer in range(depth)
            ]
        )
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs [N, outputs]."""
        for cell in self.cells:
            state: Any = (jnp.zeros((x.shape[0], self.width), x.dtype),) * 2
            hidden = []
            for step in range(x.shape[1]):
                state, y = cell(state, x[:, step])
                hidden.append(y)
            x = jnp.stack(hidden, axis=1)
        return self.head(x[:, -1])


class TorchLSTMCell(nn.Module):
    """A cell with one bias, not two: gates i, f, g, o."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense_i = nn.Linear(inputs, 4 * width, bias=False)
        self.dense_h = nn.Linear(width, 4 * width)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next hidden and cell state."""
        i, f, g, o = (self.dense_i(x) + self.dense_h(hidden)).chunk(4, dim=-1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class TorchLSTM(nn.Module):
    """As `FlaxLSTM`."""

    def __init__(self, *, channels: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.width = width
        self.cells = nn.ModuleList(
            TorchLSTMCell(width if layer else channels, width) for layer in range(depth)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs [N, outputs]."""
        for layer in self.cells:
            hidden = cell = x.new_zeros(x.shape[0], self.width)
            states = []
            for step in range(x.shape[1]):
                hidden, cell = layer(x[:, step], hidden, cell)
                states.append(hidden)
            x = torch.stack(states, dim=1)
        return self.head(x[:, -1])


CONFIGURATION = {
    "channels": 3,
    "length": 4,
    "batch": 2,
    "width": 4,
    "depth": 2,
    "outputs": 3,
}


def flax_model(*, length: int, batch: int, **knobs: Any) -> FlaxLSTM:
    """The network in nnx."""
    return FlaxLSTM(**knobs, rngs=nnx.Rngs(0))


def torch_model(*, length: int, batch: int, **knobs: Any) -> TorchLSTM:
    """The same in PyTorch."""
    return TorchLSTM(**knobs)


def inputs(seed: int, *, channels: int, length: int, batch: int, **_: Any) -> np.ndarray:
    """Sequences [N, T, C]."""
    return np.random.default_rng(seed).normal(size=(batch, length, channels))


def random_configuration(rng: np.random.Generator) -> dict[str, Any]:
    """Other knobs, as small."""
    return {
        "channels": int(rng.integers(1, 5)),
        "length": int(rng.integers(1, 5)),
        "batch": int(rng.integers(1, 4)),
        "width": int(rng.integers(2, 6)),
        "depth": int(rng.integers(1, 3)),
        "outputs": int(rng.integers(1, 4)),
    }
