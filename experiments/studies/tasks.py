"""What the studies train: a workload, a network of fixed size, and the loss it ends at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

import jaxnorm
from experiments.networks.convnet import SIDE, ConvNet
from experiments.networks.layers import layer_norm
from experiments.networks.physics import WithDerivatives
from experiments.networks.resnet import ResNet
from experiments.networks.transformer import Transformer
from experiments.training.trainer import Runs

MOMENTUM = 0.9


@dataclass(frozen=True)
class Task:
    """A workload and the network that learns it.

    Attributes:
        title: as in tables and plots.
        workload: its name.
        channels: of the convolutions before the dense layers.
        widths: of the hidden dense layers.
        activation: of the hidden layers, its name in `jax.nn`.
        standardized: whether each input is, see `Workload`.
        image: see `ConvNet`.
        halved: see `ConvNet`.
    """

    title: str
    workload: str
    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    activation: str = "relu"
    standardized: bool = False
    image: tuple[int, int] = (SIDE, 1)
    halved: bool = True

    def network(
        self,
        rule: jaxnorm.Rule | None,
        outputs: int,
        normalizer: Callable[..., nn.Module] | None = None,
        *,
        after: bool = False,
        wrapper: Callable[[nn.Module], nn.Module] | None = None,
    ) -> Any:
        """The network.

        Args:
            rule: of its linear layers; None for Flax's.
            outputs: width of its last layer.
            normalizer: makes the layer before each activation.
            after: whether that stands behind the activation.
            wrapper: makes a linear layer from Flax's.
        """
        sizes = self.channels, self.widths, outputs
        images = {"image": self.image, "halved": self.halved, "after": after, "wrapper": wrapper}
        return ConvNet(*sizes, rule, normalizer, self.activation, **images)


@dataclass(frozen=True)
class Language(Task):
    """The same with a transformer.

    Attributes:
        layer_norm: whether it has LayerNorm, under every rule.
    """

    layer_norm: bool = True

    def network(
        self,
        rule: jaxnorm.Rule | None,
        outputs: int,
        normalizer: Callable[..., nn.Module] | None = None,
        *,
        after: bool = False,
        wrapper: Callable[[nn.Module], nn.Module] | None = None,
    ) -> Any:
        """The network, which takes no other normalizer."""
        assert normalizer is None
        inner = layer_norm if self.layer_norm else None
        return Transformer(48, 2, 4, outputs, rule, inner, wrapper)


class Residual(Task):
    """The same with a residual network, whose blocks have these channels."""

    def network(
        self,
        rule: jaxnorm.Rule | None,
        outputs: int,
        normalizer: Callable[..., nn.Module] | None = None,
        *,
        after: bool = False,
        wrapper: Callable[[nn.Module], nn.Module] | None = None,
    ) -> Any:
        """The network."""
        more = {"image": self.image, "after": after, "wrapper": wrapper}
        return ResNet(self.channels, outputs, rule, normalizer, self.activation, **more)


class Physics(Task):
    """The same with the network's derivatives by its inputs beside its outputs."""

    def network(
        self,
        rule: jaxnorm.Rule | None,
        outputs: int,
        normalizer: Callable[..., nn.Module] | None = None,
        *,
        after: bool = False,
        wrapper: Callable[[nn.Module], nn.Module] | None = None,
    ) -> Any:
        """The network, of which a sample's output must be that of the sample alone."""
        more = {"after": after, "wrapper": wrapper}
        return WithDerivatives(super().network(rule, outputs, normalizer, **more))


_NARROW = (64, 64, 64)

TASKS = {
    "mlp": Task("Fashion-MNIST, 3 x 128", "fashion_mnist", widths=(128, 128, 128)),
    "convnet": Task("Fashion-MNIST, conv 8, 16", "fashion_mnist", channels=(8, 16)),
    "small_photo": Task("photograph, 3 x 64", "photo", widths=_NARROW),
    "pixels": Task("Fashion-MNIST, raw, 3 x 64", "fashion_mnist", widths=_NARROW),
    "standardized": Task(
        "Fashion-MNIST, standardized, 3 x 64", "fashion_mnist", widths=_NARROW, standardized=True
    ),
    "friedman": Task("Friedman 2, 3 x 64", "friedman", widths=_NARROW),
    "tanh": Task("Friedman 2, tanh, 3 x 64", "friedman", widths=_NARROW, activation="tanh"),
    "deep": Task("Friedman 2, 12 x 32", "friedman", widths=(32,) * 12),
    "diabetes": Task("diabetes, 2 x 64", "diabetes", widths=(64, 64)),
    "digits": Task("digits, 2 x 32", "digits", widths=(32, 32)),
    "cifar": Task("CIFAR-10, conv 16, 32", "cifar10", (16, 32), (64,), image=(16, 3), halved=False),
    "mnist": Task("MNIST, 3 x 64", "mnist", widths=_NARROW),
    "breast_cancer": Task("breast cancer, 2 x 32", "breast_cancer", widths=(32, 32)),
    "wine": Task("wine, 2 x 32", "wine", widths=(32, 32)),
    "autoencoder": Task("MNIST autoencoder", "autoencoder", widths=(128, 32, 8, 32, 128)),
    "deep30": Task("MNIST, 30 x 32", "mnist", widths=(32,) * 30),
    "burgers": Physics("Burgers, tanh, 4 x 32", "burgers", widths=(32,) * 4, activation="tanh"),
    "resnet": Residual("CIFAR-10, ResNet 16, 32", "cifar10", (16, 32), image=(16, 3)),
    "text": Language("Shakespeare, transformer", "shakespeare"),
    "bare_text": Language("Shakespeare, no LayerNorm", "shakespeare", layer_norm=False),
}


def final_losses(runs: Runs, batch_size: int) -> np.ndarray:
    """What runs end at [K, S]: their scores, or the mean loss of the last seventh of the steps.

    inf for a run that diverged or ended above its first loss.
    """
    final = runs.scores
    if final is None:
        final = runs.losses[..., -max(1, runs.losses.shape[-1] // 7) :].mean(axis=-1)
    first = runs.losses[..., : max(1, 128 // batch_size)].mean(axis=-1)
    fine = np.isfinite(runs.losses[..., -1]) & np.isfinite(final)
    return np.where(fine & (final < first), final, np.inf)
