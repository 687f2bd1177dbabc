"""What the classification workloads share: cross-entropy and accuracy."""

from typing import TYPE_CHECKING

from experiments.workloads.base import Samples, Workload

if TYPE_CHECKING:
    from jax import Array


class Classification(Workload):
    """Labels in ten classes: softmax cross-entropy, and the share of test labels that are right."""

    loss_name = "cross-entropy"
    test_name = "test accuracy"
    outputs = 10

    def __init__(self, train: Samples, test: Samples) -> None:
        """Keep the samples: inputs [N, I] float32, labels [N] int32 in 0 ... 9."""
        self.train = train
        self.test = test

    def loss(self, outputs: "Array", targets: "Array") -> "Array":
        """Mean softmax cross-entropy of logits [B, 10] and labels [B]."""
        import optax

        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

    def score(self, outputs: "Array", targets: "Array") -> "Array":
        """1 for each sample whose largest logit is its label's, else 0."""
        import jax.numpy as jnp

        # A network that has diverged has no largest logit; argmax of NaN would be class 0.
        known = jnp.isfinite(outputs).all(axis=-1)
        return jnp.where(known, outputs.argmax(axis=-1) == targets, jnp.nan).astype(jnp.float32)
