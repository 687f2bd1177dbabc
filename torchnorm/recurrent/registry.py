"""Which of our recurrent classes takes the place of which of PyTorch's."""

from torch import nn

from torchnorm.recurrent import cells, layers

KINDS: dict[type, type[nn.Module]] = {
    nn.LSTM: layers.LSTM,
    nn.GRU: layers.GRU,
    nn.RNN: layers.RNN,
    nn.LSTMCell: cells.LSTMCell,
    nn.GRUCell: cells.GRUCell,
    nn.RNNCell: cells.RNNCell,
}
