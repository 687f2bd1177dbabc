"""Training a policy by PPO, with Stable-Baselines3 on a pole that is to be balanced."""

from __future__ import annotations

import importlib

import numpy as np
import torch

import torchnorm
from parity_tests.models.outcome import Variant

TEXT = "PPO on a pole to be balanced, 12 rollouts: minus the length of the last episodes"
#: Of Adam, in Stable-Baselines3 too, a third of it is the default.
RATE = 3e-3
ROLLOUTS, STEPS, ENVIRONMENTS = 12, 128, 4


def trial(seed: int, rate: float, ours: Variant | None) -> float:
    """Minus the mean length of the last 20 episodes.

    Args:
        seed: of the initial parameters, the actions and the pole.
        rate: of AdamW.
        ours: None for plain AdamW, or how in neuron coordinates.
    """
    library, gymnasium = map(importlib.import_module, ("stable_baselines3", "gymnasium"))
    vector = importlib.import_module("stable_baselines3.common.vec_env")
    monitor = importlib.import_module("stable_baselines3.common.monitor").Monitor
    environment = vector.DummyVecEnv(
        [lambda: monitor(gymnasium.make("CartPole-v1"))] * ENVIRONMENTS
    )
    agent = library.PPO(
        "MlpPolicy",
        environment,
        learning_rate=rate,
        n_steps=STEPS,
        batch_size=128,
        n_epochs=4,
        seed=seed,
        device="cpu",
        policy_kwargs={"optimizer_class": torch.optim.AdamW},
    )
    if ours is not None:
        seen = torch.as_tensor(environment.reset())
        rule = torchnorm.Rule(epsilon=ours.epsilon)
        torchnorm.convert(agent.policy, (seen,), rule=rule, skip=ours.skip)
        torchnorm.optim.in_neuron_coordinates(agent.policy.optimizer, agent.policy)
        torch.manual_seed(seed)
    agent.learn(ROLLOUTS * STEPS * ENVIRONMENTS)
    lengths = [episode["l"] for episode in agent.ep_info_buffer]
    return -float(np.mean(lengths[-20:]))
