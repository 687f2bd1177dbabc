"""As Flax's nnx guides: `nnx.Optimizer`, `nnx.value_and_grad`, metrics."""

import jax.numpy as jnp
import optax
from flax import nnx


class CNN(nnx.Module):
    """A small convolutional network."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Linear(4 * 36, 10, rngs=rngs)

    def __call__(self, x):
        """Logits of images."""
        x = nnx.relu(self.norm(self.conv(x)))
        return self.linear(x.reshape(x.shape[0], -1))


def loss_fn(model, images, labels):
    """Loss and logits of a batch."""
    logits = model(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits=logits, labels=labels).mean()
    return loss, logits


@nnx.jit
def train_step(model, optimizer, metrics, images, labels):
    """One step."""
    grad_fn = nnx.value_and_grad(loss_fn, has_aux=True)
    (loss, logits), grads = grad_fn(model, images, labels)
    metrics.update(loss=loss, logits=logits, labels=labels)
    optimizer.update(model, grads)


def train(images, labels, steps):
    """Losses of the steps."""
    model = CNN(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(0.005), wrt=nnx.Param)
    metrics = nnx.MultiMetric(
        accuracy=nnx.metrics.Accuracy(),
        loss=nnx.metrics.Average("loss"),
    )
    losses = []
    for _ in range(steps):
        metrics.reset()
        train_step(model, optimizer, metrics, images, jnp.asarray(labels))
        losses.append(float(metrics.compute()["loss"]))
    return losses
