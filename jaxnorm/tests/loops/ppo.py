"""As PureJaxRL's PPO: environment, network and updates in one program, mapped over seeds."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxnorm.linen import TrainState


class ActorCritic(nn.Module):
    """Logits of four actions, and a value."""

    @nn.compact
    def __call__(self, x):
        """Of observations."""
        actor = nn.tanh(nn.Dense(16)(x))
        critic = nn.tanh(nn.Dense(16)(x))
        return nn.Dense(4)(actor), nn.Dense(1)(critic)[..., 0]


class Transition(NamedTuple):
    """What was seen and done."""

    action: jax.Array
    value: jax.Array
    reward: jax.Array
    log_prob: jax.Array
    obs: jax.Array


def make_train(num_updates, num_envs=64):
    """Training from a key, as a function that can be compiled and mapped."""

    def train(rng):
        # INIT NETWORK
        network = ActorCritic()
        rng, _rng = jax.random.split(rng)
        init_x = jnp.zeros((num_envs, 3))
        network_params = network.init(_rng, init_x)
        tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01, eps=1e-5))
        train_state = TrainState.prepare(
            apply_fn=network.apply,
            params=network_params,
            tx=tx,
            example_input=init_x,
        )

        def _update_step(runner_state, unused):
            train_state, rng = runner_state

            # COLLECT TRAJECTORIES
            rng, _rng, _act = jax.random.split(rng, 3)
            obs = jax.random.normal(_rng, (num_envs, 3)) * 5 + 20
            pi, value = network.apply(train_state.params, obs)
            action = jax.random.categorical(_act, pi)
            log_prob = jax.nn.log_softmax(pi)[jnp.arange(num_envs), action]
            reward = jnp.float32(action == jnp.argmax(obs, axis=1))
            traj_batch = Transition(action, value, reward, log_prob, obs)

            # UPDATE NETWORK
            def _update_epoch(train_state, unused):
                def _loss_fn(params, traj_batch, gae, targets):
                    # RERUN NETWORK
                    pi, value = train_state.apply_fn(params, traj_batch.obs)
                    log_prob = jax.nn.log_softmax(pi)[jnp.arange(num_envs), traj_batch.action]

                    # CALCULATE VALUE LOSS
                    value_loss = 0.5 * jnp.square(value - targets).mean()

                    # CALCULATE ACTOR LOSS
                    ratio = jnp.exp(log_prob - traj_batch.log_prob)
                    gae = (gae - gae.mean()) / (gae.std() + 1e-8)
                    loss_actor = -jnp.minimum(ratio * gae, ratio.clip(0.8, 1.2) * gae).mean()
                    return loss_actor + 0.5 * value_loss, value_loss

                advantages = traj_batch.reward - traj_batch.value
                grad_fn = train_state.value_and_grad(_loss_fn, has_aux=True)
                total_loss, grads = grad_fn(
                    train_state.params, traj_batch, advantages, traj_batch.reward
                )
                train_state = train_state.apply_gradients(grads=grads)
                return train_state, total_loss

            train_state, _ = jax.lax.scan(_update_epoch, train_state, None, 2)
            return (train_state, rng), traj_batch.reward.mean()

        runner_state = (train_state, rng)
        runner_state, metric = jax.lax.scan(_update_step, runner_state, None, num_updates)
        return metric

    return train


def train(num_updates, seeds):
    """Rewards of the updates, [seeds, updates]."""
    rngs = jax.random.split(jax.random.key(0), seeds)
    return jax.jit(jax.vmap(make_train(num_updates)))(rngs)
