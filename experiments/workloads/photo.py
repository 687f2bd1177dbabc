"""A photograph as a function: coordinates in, colors out. Real data that needs no network."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from experiments.workloads.base import Defaults, Samples, Workload, split

if TYPE_CHECKING:
    from jax import Array

SHRINK = 4
"""Each pixel learned is the mean of SHRINK x SHRINK pixels of the photograph."""


class Photo(Workload):
    """The color (red, green, blue in [0, 1]) at each point of [-1, 1]^2.

    A fixed tenth of the pixels is held out, and the test figure is the peak signal-to-noise ratio
    on them, ``-10 log10(mean squared error)`` dB.
    """

    name = "photo"
    title = "photograph"
    loss_name = "mean squared error"
    test_name = "test PSNR (dB)"
    outputs = 3
    defaults = Defaults(
        steps=600,
        batch_size=256,
        width=128,
        depth=3,
        rates=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        target_loss=0.0125,
    )

    def __init__(self, photograph: np.ndarray) -> None:
        """Take the photograph [H, W, 3], colors in [0, 1]."""
        height, width, _ = photograph.shape
        rows, columns = np.meshgrid(
            np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"
        )
        self.photograph = photograph.astype(np.float32)
        self.points = np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float32)
        pixels = Samples(self.points, self.photograph.reshape(-1, 3))
        self.train, self.test = split(pixels, test_share=0.1)

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the photograph from the installed scikit-learn; `data_dir` is not used."""
        from sklearn.datasets import load_sample_image

        return cls(shrink(load_sample_image("china.jpg") / 255, SHRINK))

    def loss(self, outputs: "Array", targets: "Array") -> "Array":
        """Squared error, mean over pixels and colors."""
        return ((outputs - targets) ** 2).mean()

    def score(self, outputs: "Array", targets: "Array") -> "Array":
        """Squared error of each pixel, mean over its colors."""
        return ((outputs - targets) ** 2).mean(axis=-1)

    def test_figure(self, mean_score: float) -> float:
        """Peak signal-to-noise ratio in dB."""
        return psnr(mean_score)

    def train_figure(self, loss: float) -> tuple[str, float]:
        """Peak signal-to-noise ratio in dB of a training loss."""
        return "train PSNR (dB)", psnr(loss)

    def picture(self, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The photograph as the network paints it, all pixels, clipped to [0, 1]."""
        return np.clip(predict(self.points).reshape(self.photograph.shape), 0, 1)

    def original(self) -> np.ndarray:
        """The photograph."""
        return self.photograph


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in [0, 1]."""
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(squared_error))


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of factor x factor pixels of [H, W, C]; what is left over is cut off."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: height * factor, : width * factor].reshape(
        height, factor, width, factor, image.shape[2]
    )
    return blocks.mean(axis=(1, 3)).astype(np.float32)
