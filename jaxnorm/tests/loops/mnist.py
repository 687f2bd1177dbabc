"""Flax's MNIST example: `TrainState`, a convolutional network, one step under `jax.jit`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxnorm.linen import TrainState


class CNN(nn.Module):
    """A small convolutional network."""

    @nn.compact
    def __call__(self, x):
        """Logits of images."""
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(16)(x.reshape((x.shape[0], -1))))
        return nn.Dense(10)(x)


@jax.jit
def apply_model(state, images, labels):
    """Gradients, loss and accuracy of a batch."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        one_hot = jax.nn.one_hot(labels, 10)
        loss = jnp.mean(optax.softmax_cross_entropy(logits=logits, labels=one_hot))
        return loss, logits

    grad_fn = state.value_and_grad(loss_fn, has_aux=True)
    (loss, logits), grads = grad_fn(state.params)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    return grads, loss, accuracy


@jax.jit
def update_model(state, grads):
    """One step."""
    return state.apply_gradients(grads=grads)


def create_train_state(rng, images):
    """The state before the first step."""
    cnn = CNN()
    params = cnn.init(rng, images)["params"]
    tx = optax.sgd(0.05, momentum=0.9)
    return TrainState.prepare(cnn, params, tx, images)


def train(images, labels, steps):
    """Losses of the steps."""
    state = create_train_state(jax.random.key(0), images)
    losses = []
    for _ in range(steps):
        grads, loss, _ = apply_model(state, images, labels)
        state = update_model(state, grads)
        losses.append(float(loss))
    return losses
