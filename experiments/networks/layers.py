"""What the networks are made of: linear layers with and without a rule, and normalizers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

import jaxnorm

BATCHNORM_DECAY = 0.9
"""Share of the old running statistics that BatchNorm keeps at each step. Flax's default of 0.99
averages over some hundred steps, too many for runs of a few hundred: the statistics used on the
test samples would lag behind the weights. It has no part in training."""


def linear(
    rule: jaxnorm.Rule | None,
    features: int,
    *,
    gate: Any,
    window: tuple[int, ...] = (),
    wrapper: Callable[[nn.Module], nn.Module] | None = None,
    **options: Any,
) -> Any:
    """A dense layer or, with a window, a convolution; Flax's where there is no rule.

    Args:
        rule: of the layer.
        features: outputs.
        gate: the activation that follows.
        window: of a convolution.
        wrapper: makes the layer that is used from Flax's; not with a rule.
        **options: of Flax's layer.
    """
    shape = (features, window) if window else (features,)
    if rule is None:  # only the layers that differentiate the activation need to know it
        plain: Any = nn.Conv if window else nn.Dense
        layer = plain(*shape, **options)
        return layer if wrapper is None else wrapper(layer)
    assert wrapper is None
    ours: Any = jaxnorm.linen.Conv if window else jaxnorm.linen.Dense
    return ours(*shape, gate=gate, rule=rule, **options)


def activated(
    z: jax.Array,
    activation: str,
    normalizer: Callable[..., nn.Module] | None,
    train: bool,
    *,
    after: bool = False,
) -> jax.Array:
    """Pre-activations through an activation, with a normalizer in front of it or behind it."""
    activate = getattr(jax.nn, activation)
    if normalizer is None:
        return activate(z)
    return normalizer(train)(activate(z)) if after else activate(normalizer(train)(z))


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


def online_norm(train: bool, name: str | None = None) -> nn.Module:
    """Online Normalization: each sample by those before it, in the forward and backward pass."""
    return jaxnorm.linen.normalizers.OnlineNorm(use_running_average=not train, name=name)


def mixture_norm(train: bool, name: str | None = None) -> nn.Module:
    """Mixture Normalization: by two Gaussians, fitted to the minibatch in training."""
    return jaxnorm.linen.normalizers.MixtureNorm(
        use_running_average=not train, momentum=BATCHNORM_DECAY, name=name
    )


def weight_norm(layer: nn.Module) -> nn.Module:
    """WeightNorm around a layer; it starts as the layer itself, as PyTorch's does."""
    return jaxnorm.linen.normalizers.WeightNorm(layer, convention="torch")
