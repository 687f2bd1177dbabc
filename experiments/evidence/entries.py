"""The methods of the evidence."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn
import optax

import jaxnorm
from experiments.networks.layers import batch_norm, batch_renorm, group_norm, layer_norm


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        title: as in tables and plots.
        rule: of all linear layers; None for Flax's.
        normalizer: makes the layer before each activation; None for methods without one.
        before: what the gradient goes through before the optimizer; None for nothing.
        optimizer: in the place of the problem's; "" for that.
        baseline: whether targets are set by it.
    """

    title: str
    rule: jaxnorm.Rule | None = None
    normalizer: Callable[..., nn.Module] | None = None
    before: Callable[[], optax.GradientTransformation] | None = None
    optimizer: str = ""
    baseline: bool = False


_OURS = jaxnorm.NEURONWISE

ENTRIES: dict[str, Entry] = {
    "plain": Entry("plain", baseline=True),
    "batchnorm": Entry("BatchNorm", normalizer=batch_norm, baseline=True),
    "layernorm": Entry("LayerNorm", normalizer=layer_norm, baseline=True),
    "groupnorm": Entry("GroupNorm", normalizer=group_norm),
    "batchrenorm": Entry("Batch Renormalization", normalizer=batch_renorm),
    "centralize": Entry("gradient centralization", before=jaxnorm.centralize),
    "muon": Entry("Muon", optimizer="muon"),
    "bnp": Entry("BNP, inside", jaxnorm.BNP),
    "quasi_diagonal": Entry("quasi-diagonal weights", replace(_OURS, weighting="error")),
    "centered": Entry("neuron-wise, centered only", jaxnorm.CENTERED),
    "layer_scale": Entry("neuron-wise, layer scale", replace(_OURS, scale="layer")),
    "every_step": Entry("neuron-wise, every step", replace(_OURS, statistics_every=1)),
    "neuronwise": Entry("neuron-wise", _OURS),
    "batchnorm_neuronwise": Entry("BatchNorm + neuron-wise", _OURS, batch_norm),
}
"""By their names on the command line; the default form is "neuronwise"."""
