"""Recurrent layers whose gates can be seen: PyTorch's, step by step."""

from torchnorm.recurrent.cells import GRUCell as GRUCell
from torchnorm.recurrent.cells import LSTMCell as LSTMCell
from torchnorm.recurrent.cells import RNNCell as RNNCell
from torchnorm.recurrent.layers import GRU as GRU
from torchnorm.recurrent.layers import LSTM as LSTM
from torchnorm.recurrent.layers import RNN as RNN
from torchnorm.recurrent.products import unfuse as unfuse

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "unfuse"]
