"""Plays by Shakespeare, character by character: from a folder, or downloaded once and checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from experiments.errors import DataError
from experiments.workloads.base import Samples, Workload
from experiments.workloads.sources import checked_folder, fetch, named_folder, way_out

if TYPE_CHECKING:
    from jax import Array

TEXT = "tinyshakespeare.txt"
"""Of a data folder; char-rnn's own name for it is input.txt."""

# The repository that the text became known by (MIT license; the text is in the public domain).
SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
FILE = "input.txt"
DIGEST = "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

LENGTH = 32
"""Characters in a sample."""


class Shakespeare(Workload):
    """Say the next character: 32 characters in, those that follow each of them out.

    A million characters of 65 kinds, cut into samples one after the other; the last tenth of the
    text is the test part.
    """

    name = "shakespeare"
    title = "tiny Shakespeare"
    loss_name = "cross-entropy per character"
    test_name = "test accuracy"

    def __init__(self, text: str) -> None:
        """Number the characters in alphabetical order, and cut the text."""
        self.alphabet = sorted(set(text))
        self.outputs = len(self.alphabet)
        number = {character: at for at, character in enumerate(self.alphabet)}
        codes = np.array([number[character] for character in text], np.int32)
        count = (len(codes) - 1) // LENGTH
        inputs, targets = (
            codes[first : first + count * LENGTH].reshape(count, LENGTH) for first in (0, 1)
        )
        cut = count - count // 10
        self.train = Samples(inputs[:cut], targets[:cut])
        self.test = Samples(inputs[cut:], targets[cut:])

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the text.

        Args:
            data_dir: folder with ``tinyshakespeare.txt``. None: the folder that JAXNORM_DATA names,
                or, without it, the user's cache folder, filled by a download.

        Raises:
            DataError: for a folder without the text, or a failed download.
        """
        folder = named_folder(data_dir)
        path = download() if folder is None else checked_folder(folder, TEXT) / TEXT
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); {way_out(TEXT)}") from error
        if len(text) < 100 * LENGTH:
            raise DataError(f"{path}: got {len(text)} characters, expected at least {100 * LENGTH}")
        return cls(text)

    def loss(self, outputs: "Array", targets: "Array") -> "Array":
        """Mean softmax cross-entropy of logits [B, L, K] and characters [B, L]."""
        import optax

        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

    def score(self, outputs: "Array", targets: "Array") -> "Array":
        """The share of the characters of each sample that are foreseen."""
        import jax.numpy as jnp

        known = jnp.isfinite(outputs).all(axis=(-2, -1))
        right = (outputs.argmax(axis=-1) == targets).mean(axis=-1)
        return jnp.where(known, right, jnp.nan).astype(jnp.float32)


def download(source: str = SOURCE, cache: Path | None = None) -> Path:
    """Where the text is, which is fetched once.

    Args:
        source: address of the folder that holds it.
        cache: where it is kept. None: the user's cache folder for "jaxnorm".

    Raises:
        DataError: for a failed download or a text with another digest.
    """
    return fetch("shakespeare", source, {FILE: DIGEST}, TEXT, cache)[FILE]
