"""The methods of the evidence."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn
import optax

import jaxnorm
from experiments.networks.layers import (
    batch_norm,
    batch_renorm,
    group_norm,
    layer_norm,
    mixture_norm,
    online_norm,
    weight_norm,
)


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        title: as in tables and plots.
        rule: of all linear layers; None for Flax's.
        normalizer: makes the layer before each activation; None for methods without one.
        after: whether the normalizer stands behind the activation.
        wrapper: makes each linear layer from Flax's; None for methods without one.
        standardized: whether each input is, over the samples that are learned from.
        before: what the gradient goes through before the optimizer, from the batch size; None for
            nothing.
        inside: whether the optimizer works in the coordinates of a rule that takes statistics.
        optimizer: in the place of the problem's; "" for that.
        only: the problem's optimizer that it is for; "" for any.
        apart: whether a sample's output is that of the sample alone, and the loss may hold
            derivatives of it.
        samples: the least that a batch may have.
        baseline: whether targets are set by it.
    """

    title: str
    rule: jaxnorm.Rule | None = None
    normalizer: Callable[..., nn.Module] | None = None
    after: bool = False
    wrapper: Callable[[nn.Module], nn.Module] | None = None
    standardized: bool = False
    before: Callable[[int], optax.GradientTransformation] | None = None
    inside: bool = True
    optimizer: str = ""
    only: str = ""
    apart: bool = True
    samples: int = 1
    baseline: bool = False


_OURS = jaxnorm.NEURONWISE

_LITERAL = replace(
    _OURS,
    gradient="standardized",
    step_size="standardized",
    shrinkage=0.0,
    damping=0.0,
    epsilon=1e-5,
)
"""The source's form as it can be read: the gradient in each neuron's coordinates is the step, sigma
of the neuron's active samples alone, with BatchNorm's epsilon."""


def _published_bnp(batch: int) -> optax.GradientTransformation:
    del batch
    return jaxnorm.scale_by_bnp()


def _published_metric(batch: int) -> optax.GradientTransformation:
    """The update for a loss summed over the batch, as it was published; ours is the mean."""
    metric = jaxnorm.scale_by_quasi_diagonal(epsilon=1e-12 / batch**4)
    return optax.chain(metric, optax.scale(1 / batch))


def _centralize(batch: int) -> optax.GradientTransformation:
    del batch
    return jaxnorm.centralize()


ENTRIES: dict[str, Entry] = {
    "plain": Entry("plain", baseline=True),
    "batchnorm": Entry("BatchNorm", normalizer=batch_norm, apart=False, baseline=True),
    "layernorm": Entry("LayerNorm", normalizer=layer_norm, baseline=True),
    "groupnorm": Entry("GroupNorm", normalizer=group_norm),
    "batchnorm_after": Entry("BatchNorm, after", normalizer=batch_norm, after=True, apart=False),
    "batchrenorm": Entry("Batch Renormalization", normalizer=batch_renorm, apart=False, samples=2),
    "weightnorm": Entry("WeightNorm", wrapper=weight_norm),
    "onlinenorm": Entry("Online Normalization", normalizer=online_norm, apart=False),
    "mixturenorm": Entry("Mixture Normalization", normalizer=mixture_norm, apart=False, samples=2),
    "inputs": Entry("inputs standardized", standardized=True),
    "centralize": Entry("gradient centralization", before=_centralize),
    "muon": Entry("Muon", optimizer="muon"),
    "bnp": Entry("BNP, inside", jaxnorm.BNP),
    "bnp_published": Entry(
        "BNP, as published", jaxnorm.BNP, before=_published_bnp, inside=False, only="sgd"
    ),
    "metric": Entry(
        "quasi-diagonal metric",
        jaxnorm.QUASI_DIAGONAL,
        before=_published_metric,
        inside=False,
        only="sgd",
    ),
    "literal": Entry("literal form", _LITERAL, apart=False, samples=2),
    "quasi_diagonal": Entry("quasi-diagonal weights", replace(_OURS, weighting="error")),
    "centered": Entry("neuron-wise, centered only", jaxnorm.CENTERED),
    "layer_scale": Entry("neuron-wise, layer scale", replace(_OURS, scale="layer")),
    "every_step": Entry("neuron-wise, every step", replace(_OURS, statistics_every=1)),
    "averaged": Entry("neuron-wise, decay 0.99", replace(_OURS, decay=0.99)),
    "neuronwise": Entry("neuron-wise", _OURS),
    "batchnorm_neuronwise": Entry("BatchNorm + neuron-wise", _OURS, batch_norm, apart=False),
}
"""By their names on the command line; the default form is "neuronwise"."""
