"""As Flax's ImageNet example: BatchNorm, L2 in the loss, bfloat16 or float16 with a loss scale."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import dynamic_scale as dynamic_scale_lib

from jaxnorm.linen import train_state


class ResNet(nn.Module):
    """One residual block."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=True):
        """Logits of images."""
        x = nn.Conv(4, (3, 3), use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        y = nn.Conv(4, (3, 3), use_bias=False, dtype=self.dtype)(x)
        y = nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(y)
        x = nn.relu(x + y)
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2))).astype(jnp.float32)


class TrainState(train_state.TrainState):
    """With what the normalization and the loss scale keep."""

    batch_stats: Any
    dynamic_scale: dynamic_scale_lib.DynamicScale


def create_train_state(rng, model, images):
    """The state before the first step."""
    variables = model.init(rng, images)
    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)
    state = TrainState.prepare(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        example_input=images,
        batch_stats=variables["batch_stats"],
        dynamic_scale=dynamic_scale_lib.DynamicScale(),
    )
    return state


@jax.jit
def train_step(state, images, labels):
    """One step."""

    def loss_fn(params):
        """Loss for training."""
        logits, new_model_state = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            mutable=["batch_stats"],
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        weight_penalty_params = jax.tree.leaves(params)
        weight_decay = 0.0001
        weight_l2 = sum(jnp.sum(x**2) for x in weight_penalty_params if x.ndim > 1)
        weight_penalty = weight_decay * 0.5 * weight_l2
        loss = loss + weight_penalty
        return loss, (new_model_state, logits)

    dynamic_scale = state.dynamic_scale
    is_fin = True
    if dynamic_scale:
        grad_fn = state.value_and_grad(loss_fn, has_aux=True, using=dynamic_scale.value_and_grad)
        dynamic_scale, is_fin, aux, grads = grad_fn(state.params)
    else:
        grad_fn = state.value_and_grad(loss_fn, has_aux=True)
        aux, grads = grad_fn(state.params)
    loss, (new_model_state, _) = aux
    new_state = state.apply_gradients(grads=grads, batch_stats=new_model_state["batch_stats"])
    new_state = new_state.replace(
        opt_state=jax.tree.map(
            lambda new, old: jnp.where(is_fin, new, old), new_state.opt_state, state.opt_state
        ),
        params=jax.tree.map(
            lambda new, old: jnp.where(is_fin, new, old), new_state.params, state.params
        ),
        dynamic_scale=dynamic_scale,
    )
    return new_state, loss


def train(images, labels, steps, dtype=jnp.float16):
    """Losses of the steps."""
    state = create_train_state(jax.random.key(0), ResNet(dtype), images)
    losses = []
    for _ in range(steps):
        state, loss = train_step(state, images, labels)
        losses.append(float(loss))
    return losses
