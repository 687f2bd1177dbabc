"""Proximal policy optimization (Schulman et al., 2017), all of it in one compiled program.

Letters: R runs, U updates, T frames of each environment in an update, N environments,
B frames in a minibatch.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

import jaxnorm
from experiments.methods import Method
from experiments.reinforcement.policy import ActorCritic
from experiments.reinforcement.tasks import Task, make_world

TRACE, CLIP, ENTROPY, VALUE, NORM = 0.95, 0.2, 0.01, 0.5, 0.5
"""Lambda of the advantages; how far the ratio may go; weights of entropy and value; largest norm of
the gradient: the usual ones."""


class PlainState(train_state.TrainState):
    """Flax's state, used as `jaxnorm.linen.TrainState` is.

    Attributes:
        batch_stats: of BatchNorm; empty without.
    """

    batch_stats: Any

    def value_and_grad(self, loss: Any, has_aux: bool) -> Any:
        """JAX's."""
        return jax.value_and_grad(loss, has_aux=has_aux)


class Frames(NamedTuple):
    """What is remembered of acting, [T, N, ...]; returns are 0 where no episode ends."""

    observation: Any
    action: Any
    log_prob: Any
    value: Any
    reward: Any
    final: Any
    terminated: Any
    done: Any
    episode_return: Any


class Playing(NamedTuple):
    """Environments at work, [N, ...]: their states, observations, rewards of the episode so far."""

    state: Any
    observation: Any
    total: Any


class Learned(NamedTuple):
    """What runs leave behind.

    Attributes:
        final_return: mean over fresh episodes after the last update; nan for a run whose
            parameters are not finite [R].
        returns: sum of the returns of the episodes that ended in each update [R, U].
        episodes: how many these are [R, U].
        divergence: of the policy from the one that acted, mean over the steps of each update
            [R, U]; in nats.
    """

    final_return: np.ndarray
    returns: np.ndarray
    episodes: np.ndarray
    divergence: np.ndarray


def advantages(
    rewards: Any,
    values: Any,
    next_values: Any,
    terminated: Any,
    done: Any,
    discount: float,
    trace: float,
) -> jax.Array:
    """Generalized advantages (Schulman et al., 2016), [T, N].

    Args:
        rewards: of each frame [T, N].
        values: of the observations before it.
        next_values: of those after it, before a new episode begins.
        terminated: whether nothing more can be earned after it.
        done: whether its episode ends, by itself or because its time is over.
        discount: gamma.
        trace: lambda.
    """
    errors = rewards + discount * jnp.where(terminated, 0.0, next_values) - values

    def back(later: Any, now: Any) -> Any:
        error, done = now
        advantage = error + discount * trace * jnp.where(done, 0.0, later)
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(errors[0]), (errors, done), reverse=True)[1]


@dataclass(frozen=True, eq=False)
class Ppo:
    """Learns one environment under one method.

    Attributes:
        task: the environment.
        method: rule and normalizer.
    """

    task: Task
    method: Method

    @cached_property
    def world(self) -> Any:
        """The environment."""
        return make_world(self.task.environment)

    @cached_property
    def network(self) -> ActorCritic:
        """Actor and critic."""
        world, widths = self.world, self.task.sizes.widths
        return ActorCritic(widths, world.actions, world.continuous, self.method.normalizer)

    @cached_property
    def _runs(self) -> Any:
        return jax.jit(jax.vmap(self._run))

    def __call__(self, rates: Any, seeds: Any) -> Learned:
        """Runs with these rates [R] and these seeds [R], at once; as many again share a program."""
        # Not in the program: two batched QR decompositions in it, of the orthogonal weights, can
        # wait for each other for ever on a CPU of two cores (jaxlib 0.10).
        drawn = {int(seed): self._draw(int(seed)) for seed in seeds}
        variables = jax.tree.map(lambda *of: jnp.stack(of), *(drawn[int(seed)] for seed in seeds))
        arguments = jnp.asarray(rates, jnp.float32), jnp.asarray(seeds, jnp.int32), variables
        return Learned(*map(np.asarray, self._runs(*arguments)))

    def _draw(self, seed: int) -> Any:
        """The initial variables of a run."""
        key, reset, *_ = _keys(seed)
        return self.network.init(key, self._reset(reset, 1).observation, train=False)

    def _run(self, rate: Any, seed: Any, variables: Any) -> tuple[Any, ...]:
        """The fields of `Learned`, of one run."""
        _, reset, learn, judge = _keys(seed)
        playing = self._reset(reset, self.task.sizes.environments)
        state = self._start(variables, rate, playing.observation)
        keys = jax.random.split(learn, self.task.updates)
        (state, _), curves = jax.lax.scan(self._update, (state, playing), keys)
        fine = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)])
        return jnp.where(fine.all(), self._judge(state, judge), jnp.nan), *curves

    def _start(self, variables: Any, rate: Any, observation: Any) -> Any:
        """A new state: Flax's, or that of `jaxnorm` under a rule. The rate falls to 0 in a line."""
        steps = self.task.updates * self.task.sizes.optimizer_steps
        optimizer = optax.chain(
            optax.clip_by_global_norm(NORM),
            optax.scale_by_adam(eps=1e-5),
            optax.scale_by_learning_rate(lambda step: rate * (1 - step / steps)),
        )
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        if self.method.rule is None:
            of = {"apply_fn": self.network.apply, "params": params, "tx": optimizer}
            return PlainState.create(**of, batch_stats=batch_stats)
        return jaxnorm.linen.TrainState.prepare(
            self.network,
            params,
            optimizer,
            jnp.zeros((self.task.sizes.minibatch, *observation.shape[1:])),
            rule=self.method.rule,
            example_kwargs={"train": True},
        )

    def _reset(self, key: jax.Array, count: int) -> Playing:
        keys = jax.random.split(key, count)
        reset = partial(self.world.environment.reset, params=self.world.settings)
        observation, state = jax.vmap(reset)(keys)
        return Playing(state, observation, jnp.zeros(count))

    def _outputs(self, state: Any, observation: Any) -> Any:
        """(policies, values) for acting: BatchNorm with its running statistics."""
        variables = {"params": state.params}
        if state.batch_stats:
            variables["batch_stats"] = state.batch_stats
        return self.network.apply(variables, observation, train=False)

    def _act(self, state: Any, playing: Playing, key: jax.Array) -> tuple[Playing, Frames]:
        """One frame of each environment; those whose episodes end begin new ones."""
        draw, step = jax.random.split(key)
        policy, value = self._outputs(state, playing.observation)
        action = policy.sample(draw)
        keys = jax.random.split(step, len(value))
        observation, moved, reward, terminated, truncated, more = jax.vmap(
            self.world.environment.step, (0, 0, 0, None)
        )(keys, playing.state, action, self.world.settings)
        done, total = terminated | truncated, playing.total + reward
        frame = Frames(
            playing.observation,
            action,
            policy.log_prob(action),
            value,
            reward / self.task.unit,
            more["final_observation"],
            terminated,
            done,
            jnp.where(done, total, 0.0),
        )
        return Playing(moved, observation, jnp.where(done, 0.0, total)), frame

    def _update(self, carry: Any, key: jax.Array) -> Any:
        """Act for T frames, then learn from them; what is returned beside is for `Learned`."""
        (state, playing), sizes = carry, self.task.sizes
        act, learn = jax.random.split(key)
        keys = jax.random.split(act, sizes.steps)
        playing, frames = jax.lax.scan(partial(self._act, state), playing, keys)
        _, next_values = jax.vmap(partial(self._outputs, state))(frames.final)
        advantage = advantages(
            frames.reward,
            frames.value,
            next_values,
            frames.terminated,
            frames.done,
            self.task.discount,
            TRACE,
        )
        seen = frames.observation, frames.action, frames.log_prob
        rows = jax.tree.map(
            lambda leaf: leaf.reshape(sizes.frames, *leaf.shape[2:]),
            (*seen, advantage, advantage + frames.value),
        )
        orders = jax.vmap(partial(jax.random.permutation, x=sizes.frames))(
            jax.random.split(learn, sizes.epochs)
        )
        step = partial(_step, rows)
        state, divergence = jax.lax.scan(step, state, orders.reshape(-1, sizes.minibatch))
        ended = frames.episode_return.sum(), frames.done.sum()
        return (state, playing), (*ended, divergence.mean())

    def _judge(self, state: Any, key: jax.Array) -> jax.Array:
        """Mean return of fresh episodes, with actions drawn as in learning."""
        reset, act = jax.random.split(key)
        count = self.task.sizes.episodes

        def frame(carry: Any, key: jax.Array) -> Any:
            playing, over, total = carry
            playing, frame = self._act(state, playing, key)
            total = jnp.where(over, total, total + frame.reward * self.task.unit)
            return (playing, over | frame.done, total), None

        start = self._reset(reset, count), jnp.zeros(count, bool), jnp.zeros(count)
        keys = jax.random.split(act, self.world.length)
        (_, _, total), _ = jax.lax.scan(frame, start, keys)
        return total.mean()


def _keys(seed: Any) -> Any:
    """What a run draws with: weights, first states, learning, fresh episodes."""
    return jax.random.split(jax.random.key(seed), 4)


def _step(rows: Any, state: Any, order: Any) -> Any:
    """One step of the optimizer on the frames of a minibatch [B]; also the divergence before it."""
    observation, action, log_prob, advantage, target = jax.tree.map(lambda leaf: leaf[order], rows)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

    def loss(params: Any) -> Any:
        variables, changed = {"params": params}, {}
        if state.batch_stats:
            variables["batch_stats"] = state.batch_stats
            outputs, changed = state.apply_fn(
                variables, observation, train=True, mutable=["batch_stats"]
            )
        else:
            outputs = state.apply_fn(variables, observation, train=True)
        policy, value = outputs
        logs = policy.log_prob(action) - log_prob
        ratio = jnp.exp(logs)
        clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
        gain = jnp.minimum(ratio * advantage, clipped * advantage).mean()
        error = 0.5 * ((value - target) ** 2).mean()
        divergence = (ratio - 1 - logs).mean()  # never negative, unlike the mean of the logarithms
        return VALUE * error - gain - ENTROPY * policy.entropy().mean(), (changed, divergence)

    (_, (changed, divergence)), gradients = state.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, **changed), divergence
