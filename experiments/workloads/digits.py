"""scikit-learn's 8x8 handwritten digits: small, and part of the installation."""

from pathlib import Path
from typing import Self

import numpy as np

from experiments.workloads.base import Defaults, Samples, split
from experiments.workloads.classification import Classification


class Digits(Classification):
    """1797 images of 64 gray values, scaled to [0, 1]; a fixed fifth of them is the test part."""

    name = "digits"
    title = "scikit-learn digits"
    defaults = Defaults(
        steps=300,
        batch_size=128,
        width=64,
        depth=3,
        rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        target_loss=0.0025,
    )

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the images from the installed scikit-learn; `data_dir` is not used."""
        from sklearn.datasets import load_digits

        images, labels = map(np.asarray, load_digits(return_X_y=True))
        inputs = (images / 16).astype(np.float32)
        return cls(*split(Samples(inputs, labels.astype(np.int32)), test_share=0.2))
