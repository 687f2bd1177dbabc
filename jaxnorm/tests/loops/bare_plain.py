"""A loop without a state: parameters, and that of Optax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class MLP(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, x):
        """Run it."""
        return nn.Dense(10)(nn.gelu(nn.Dense(16)(x)))


def train(images, labels, steps):
    """Losses of the steps."""
    x = images.reshape(len(images), -1)
    model = MLP()
    params = model.init(jax.random.key(0), x)
    optimizer = optax.adamw(0.005)
    opt_state = optimizer.init(params)

    def loss_fn(params, x, y):
        logits = model.apply(params, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    @jax.jit
    def train_step(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, loss

    losses = []
    for _ in range(steps):
        params, opt_state, loss = train_step(params, opt_state, x, labels)
        losses.append(float(loss))
    return losses
