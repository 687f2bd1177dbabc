"""What the studies train: a workload, a network of fixed size, and the loss it ends at."""

from dataclasses import dataclass
from functools import partial

import numpy as np

import jaxnorm
from experiments.networks.convnet import SIDE, ConvNet
from experiments.training.method import make_optimizer
from experiments.training.trainer import Runs

MOMENTUM = 0.9
sgd = partial(make_optimizer, "sgd", MOMENTUM)


@dataclass(frozen=True)
class Task:
    """A workload and the network that learns it.

    Attributes:
        title: as in tables and plots.
        workload: its name.
        inputs: of the network.
        channels: of the convolutions before the dense layers.
        widths: of the hidden dense layers.
    """

    title: str
    workload: str
    inputs: int
    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()

    def network(self, rule: jaxnorm.Rule, outputs: int) -> ConvNet:
        """The network, its layers under a rule."""
        return ConvNet(self.channels, self.widths, outputs, rule)


TASKS = {
    "photo": Task("photograph, 3 x 128", "photo", 2, widths=(128, 128, 128)),
    "mlp": Task("Fashion-MNIST, 3 x 128", "fashion_mnist", SIDE**2, widths=(128, 128, 128)),
    "convnet": Task("Fashion-MNIST, conv 8, 16", "fashion_mnist", SIDE**2, channels=(8, 16)),
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
