"""Flax nnx: Flax's layers with the rule in their backward pass, and whole models.

base.py             what the layers share
linear.py           Linear, LinearGeneral, Einsum
conv.py             Conv, ConvTranspose
registry.py         which of them takes the place of which of Flax's
convert.py          `convert`
revert.py           `revert`, which takes it back
modules.py          the modules of a model, by path
trace.py            a marked copy of a model, to trace
wiring.py           how a converted model hands its handles over
changes.py          what was changed in a model since
neuron_stats.py     the variables that statistics are
init_statistics.py  `init_statistics`, which makes them
optimizer.py        `Optimizer`, which merges them
gradients.py        `grad` and `value_and_grad`, which take them along
prepare.py          `prepare`: all of it in one call
normalizers/        other normalizers, to compare and to combine with
"""

from jaxnorm.conversion.decisions import LEAVE as LEAVE
from jaxnorm.conversion.decisions import Deferred as Deferred
from jaxnorm.conversion.decisions import Product as Product
from jaxnorm.conversion.report import Report as Report
from jaxnorm.nnx import normalizers as normalizers
from jaxnorm.nnx.conv import Conv as Conv
from jaxnorm.nnx.conv import ConvTranspose as ConvTranspose
from jaxnorm.nnx.convert import convert as convert
from jaxnorm.nnx.gradients import grad as grad
from jaxnorm.nnx.gradients import value_and_grad as value_and_grad
from jaxnorm.nnx.init_statistics import init_statistics as init_statistics
from jaxnorm.nnx.linear import Einsum as Einsum
from jaxnorm.nnx.linear import Linear as Linear
from jaxnorm.nnx.linear import LinearGeneral as LinearGeneral
from jaxnorm.nnx.neuron_stats import PARAMS_AND_STATISTICS as PARAMS_AND_STATISTICS
from jaxnorm.nnx.neuron_stats import NeuronStats as NeuronStats
from jaxnorm.nnx.optimizer import Optimizer as Optimizer
from jaxnorm.nnx.prepare import Prepared as Prepared
from jaxnorm.nnx.prepare import prepare as prepare
from jaxnorm.nnx.revert import revert as revert
