"""Faults of the recurrent network: the order of the gates, initial states, biases."""

from functools import partial

from parity_tests.port.faults.fault import Fault

fault = partial(Fault, pair="lstm")

CELL = ("cells/0", "cells.0")

FAULTS = (
    fault(
        "gates in the order i, f, o, g",
        side="torch",
        edits=(("i, f, g, o = (self", "i, f, o, g = (self"),),
        layer=CELL,
        cause="order of gates",
    ),
    fault(
        "gates in the order i, g, f, o",
        side="torch",
        edits=(("i, f, g, o = (self", "i, g, f, o = (self"),),
        layer=CELL,
        cause="order of gates",
    ),
    fault(
        "initial states 1",
        side="torch",
        edits=(("x.new_zeros(x.shape[0], self.width)", "x.new_ones(x.shape[0], self.width)"),),
        layer=("", ""),
        cause="initial states",
    ),
    fault(
        "initial states 1",
        side="flax",
        edits=(("(jnp.zeros((x.shape[0]", "(jnp.ones((x.shape[0]"),),
        layer=("", ""),
        cause="initial states",
    ),
    fault(
        "forget gate's bias raised by 1",
        side="torch",
        edits=(("torch.sigmoid(f) * cell", "torch.sigmoid(f + 1) * cell"),),
        layer=CELL,
        cause=None,
    ),
    fault(
        "two biases",
        side="torch",
        edits=(("nn.Linear(inputs, 4 * width, bias=False)", "nn.Linear(inputs, 4 * width)"),),
        layer=("cells/0/dense_i", "cells.0.dense_i"),
        cause="bias missing",
    ),
    fault(
        "the cell state given on as hidden state",
        side="torch",
        edits=(("torch.tanh(cell), cell\n", "torch.tanh(cell), torch.tanh(cell)\n"),),
        layer=CELL,
        cause=None,
    ),
    fault(
        "the first hidden state in place of the last",
        side="torch",
        edits=(
            (
                "return self.head(x[:, -1])\n\n\nCONFIGURATION",
                "return self.head(x[:, 0])\n\n\nCONFIGURATION",
            ),
        ),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "time backwards",
        side="flax",
        edits=(("cell(state, x[:, step])", "cell(state, x[:, -1 - step])"),),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "gradient through time stopped",
        side="torch",
        edits=(
            (
                "hidden, cell = layer(x[:, step], hidden, cell)",
                "hidden, cell = layer(x[:, step], hidden.detach(), cell)",
            ),
        ),
        layer=("", ""),
        cause="gradient stopped",
    ),
)
