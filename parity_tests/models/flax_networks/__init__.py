"""Networks in Flax that know nothing of jaxnorm: of linen and of nnx modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from flax import nnx

from parity_tests.models.flax_networks import of_linen, of_nnx, research
from parity_tests.models.flax_networks.of_linen import ResNetBlock
from parity_tests.models.flax_networks.of_nnx import NnxBlock, NnxEncoderBlock
from parity_tests.models.tasks import Task, chain, clean, moons, patterns, table


def images() -> np.ndarray:
    """Six small images, with a mean."""
    return np.random.default_rng(0).normal(size=(6, 8, 8, 3)) + 0.5


def _normal(*shape: int) -> Callable[[], np.ndarray]:
    return lambda: np.random.default_rng(2).normal(size=shape)


def _tokens(vocabulary: int) -> Callable[[], np.ndarray]:
    return lambda: np.random.default_rng(1).integers(0, vocabulary, (4, 6))


#: Name -> (make, its inputs, keyword arguments of its call).
LINEN: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    "ResNet": (of_linen.ResNet, images, {"train": True, "mutable": ["batch_stats"]}),
    "ViT": (of_linen.ViT, images, {"train": True, "rngs": True}),
    "Mixer": (of_linen.Mixer, images, {}),
    "GPT": (of_linen.GPT, _tokens(11), {}),
    "Policy": (of_linen.Policy, _normal(3, 5, 7), {}),
}
#: The same, in the manner of research code.
RESEARCH: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    "actor and critic": (research.ActorCritic, _normal(12, 5), {}),
    "deep Q": (research.DeepQ, images, {}),
    "BiT": (research.Bit, images, {}),
    "lm1b": (research.Lm1b, _tokens(33), {}),
    "denoiser": (research.Denoiser, images, {}),
    "flow": (research.Flow, _normal(12, 2), {}),
}
#: Name -> make; the inputs are `images`.
NNX: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "ResNet": of_nnx.NnxResNet,
    "ViT": of_nnx.NnxViT,
    "autoencoder": of_nnx.NnxAutoencoder,
    "dueling deep Q": of_nnx.NnxDueling,
}

_CLASSES = patterns((8, 8, 3))
#: What a network learns.
TASKS: dict[str, Task] = {
    "ResNet": _CLASSES,
    "ViT": _CLASSES,
    "Mixer": _CLASSES,
    "Policy": patterns((5, 7)),
    "actor and critic": table(3),
    "deep Q": _CLASSES,
    "BiT": _CLASSES,
    "lm1b": chain(None),
    "denoiser": clean((8, 8, 3)),
    "flow": moons(),
    "autoencoder": clean((8, 8, 3)),
    "dueling deep Q": _CLASSES,
}

__all__ = [
    "LINEN",
    "NNX",
    "RESEARCH",
    "TASKS",
    "NnxBlock",
    "NnxEncoderBlock",
    "ResNetBlock",
    "images",
]
