"""What the networks are made of: linear layers with and without a rule, and normalizers."""

from typing import Any

import flax.linen as nn

import jaxnorm

BATCHNORM_DECAY = 0.9
"""Share of the old running statistics that BatchNorm keeps at each step. Flax's default of 0.99
averages over some hundred steps, too many for runs of a few hundred: the statistics used on the
test samples would lag behind the weights. It has no part in training."""


def linear(
    rule: jaxnorm.Rule | None,
    features: int,
    *,
    gate: str | None,
    window: tuple[int, ...] = (),
    **options: Any,
) -> nn.Module:
    """A dense layer or, with a window, a convolution; Flax's where there is no rule."""
    shape = (features, window) if window else (features,)
    if rule is None:  # only the layers that differentiate the activation need to know it
        plain: Any = nn.Conv if window else nn.Dense
        return plain(*shape, **options)
    ours: Any = jaxnorm.linen.Conv if window else jaxnorm.linen.Dense
    return ours(*shape, gate=gate, rule=rule, **options)


def batch_norm(train: bool, name: str | None = None) -> nn.Module:
    """BatchNorm, on the minibatch in training."""
    return nn.BatchNorm(use_running_average=not train, momentum=BATCHNORM_DECAY, name=name)


def layer_norm(train: bool, name: str | None = None) -> nn.Module:
    """LayerNorm, the same in training and afterwards."""
    del train
    return nn.LayerNorm(name=name)


def group_norm(train: bool, name: str | None = None) -> nn.Module:
    """GroupNorm with four groups, the same in training and afterwards."""
    del train
    return nn.GroupNorm(num_groups=4, name=name)


def batch_renorm(train: bool, name: str | None = None) -> nn.Module:
    """Batch Renormalization; its limits open over some hundred steps, as the runs are short."""
    return jaxnorm.linen.normalizers.BatchRenorm(
        use_running_average=not train, momentum=BATCHNORM_DECAY, schedule_scale=0.01, name=name
    )
