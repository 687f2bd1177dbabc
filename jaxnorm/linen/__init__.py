"""Flax linen: Flax's layers with the rule in their backward pass, and whole models.

base.py         what the layers share
dense.py        Dense, DenseGeneral, Einsum
conv.py         Conv, ConvTranspose
registry.py     which of them says how to run which of Flax's
convert.py      `neuronwise`, `find_gates`
intercept.py    the interceptors behind them
neuron_stats.py the statistics of a model: `init_statistics`
recording.py    how they reach the calls in a loss, and come back: `Gradients`
prepare.py      `prepare`, `grad`, `value_and_grad`: for loops without a state
train_state.py  `TrainState`, which carries them
normalizers/    other normalizers, to compare and to combine with
"""

from jaxnorm.conversion.decisions import LEAVE as LEAVE
from jaxnorm.conversion.decisions import Deferred as Deferred
from jaxnorm.conversion.decisions import Product as Product
from jaxnorm.conversion.report import Report as Report
from jaxnorm.linen import normalizers as normalizers
from jaxnorm.linen.conv import Conv as Conv
from jaxnorm.linen.conv import ConvTranspose as ConvTranspose
from jaxnorm.linen.convert import find_gates as find_gates
from jaxnorm.linen.convert import neuronwise as neuronwise
from jaxnorm.linen.dense import Dense as Dense
from jaxnorm.linen.dense import DenseGeneral as DenseGeneral
from jaxnorm.linen.dense import Einsum as Einsum
from jaxnorm.linen.neuron_stats import init_statistics as init_statistics
from jaxnorm.linen.prepare import Prepared as Prepared
from jaxnorm.linen.prepare import grad as grad
from jaxnorm.linen.prepare import prepare as prepare
from jaxnorm.linen.prepare import value_and_grad as value_and_grad
from jaxnorm.linen.recording import Gradients as Gradients
from jaxnorm.linen.train_state import TrainState as TrainState
