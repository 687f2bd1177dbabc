"""Why a layer departs: one small class for each cause, which repairs one thing and looks again.

A cause is confirmed if the two sides agree, in all that departs, once PyTorch's layer computes as
the cause says that Flax's does; it is suspected if that takes nearly all of the difference away.
Nothing is named on the looks of the numbers alone.

Adding one: a subclass of `Cause` in a file of this folder, and its line in `CAUSES`; the order is
that of the trials, what is special before what is general.
"""

from parity_tests.port.causes.activation import Activation, GeluVariant, LeakySlope
from parity_tests.port.causes.attention import AttentionScale, CausalMask
from parity_tests.port.causes.base import Case as Case
from parity_tests.port.causes.base import Cause as Cause
from parity_tests.port.causes.bias import BiasMissing
from parity_tests.port.causes.convolution import Dilation, Padding
from parity_tests.port.causes.flattening import ChannelOrder
from parity_tests.port.causes.gradient import GradientStopped
from parity_tests.port.causes.kernel import FlippedKernel, TransposedKernel
from parity_tests.port.causes.normalization import (
    Axis,
    BatchStatistics,
    Epsilon,
    Groups,
    UnbiasedVariance,
)
from parity_tests.port.causes.pooling import CountIncludePad, Pooling
from parity_tests.port.causes.precision import Dtype
from parity_tests.port.causes.recurrent import GateOrder, InitialCarry
from parity_tests.port.causes.resizing import ConcatenationOrder, Resizing
from parity_tests.port.causes.running import Momentum, RunningVariance
from parity_tests.port.causes.wiring import ConstantFactor, NotAdded, OtherValue, Residual

CAUSES: tuple[Cause, ...] = (
    BiasMissing(),
    RunningVariance(),
    Momentum(),
    Epsilon(),
    BatchStatistics(),
    UnbiasedVariance(),
    Groups(),
    Axis(),
    GeluVariant(),
    LeakySlope(),
    Activation(),
    Padding(),
    CountIncludePad(),
    Pooling(),
    Dilation(),
    TransposedKernel(),
    FlippedKernel(),
    GateOrder(),
    InitialCarry(),
    CausalMask(),
    AttentionScale(),
    ChannelOrder(),
    ConcatenationOrder(),
    Resizing(),
    Residual(),
    NotAdded(),
    ConstantFactor(),
    OtherValue(),
    GradientStopped(),
    Dtype(),
)
