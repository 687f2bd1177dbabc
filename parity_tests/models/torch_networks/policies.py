"""Policies and critics of Stable-Baselines3."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.models.tasks import patterns
from parity_tests.models.torch_networks import model
from parity_tests.models.torch_networks.model import itself, normal

Model = partial(model.Model, needs=("stable_baselines3", "gymnasium"))


class ActorCritic(nn.Module):
    """The logits and the value that a policy computes from observations, beside each other."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, actions + 1]."""
        actor, critic = self.policy.mlp_extractor(self.policy.features_extractor(x))
        return torch.cat([self.policy.action_net(actor), self.policy.value_net(critic)], 1)


def _policy(kind: str, low: float, high: float, *shape: int, **options: Any) -> nn.Module:
    policies = importlib.import_module("stable_baselines3.common.policies")
    spaces = importlib.import_module("gymnasium.spaces")
    observed, actions = spaces.Box(low, high, shape), spaces.Discrete(3)
    return ActorCritic(getattr(policies, kind)(observed, actions, lambda _: 1e-3, **options))


class Critics(nn.Module):
    """What all critics say of observations and actions, beside each other."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """[N, critics]."""
        return torch.cat(self.critic(x, action), 1)


def _critic() -> nn.Module:
    policies = importlib.import_module("stable_baselines3.sac.policies")
    spaces = importlib.import_module("gymnasium.spaces")
    boxes = spaces.Box(-1, 1, (5,)), spaces.Box(-1, 1, (2,))
    return Critics(policies.SACPolicy(*boxes, lambda _: 1e-3, net_arch=[16, 16]).critic)


_CNN = {
    "normalize_images": False,
    "features_extractor_kwargs": {"features_dim": 16, "normalized_image": True},
}

MODELS = (
    Model(
        "PPO policy (SB3)",
        partial(_policy, "ActorCriticPolicy", -1, 1, 5),
        normal(12, 5),
        {"*policy_net.*": itself(torch.tanh), "*value_net.?": itself(torch.tanh)},
    ),
    Model(
        "PPO policy for images (SB3)",
        partial(_policy, "ActorCriticCnnPolicy", 0, 1, 1, 36, 36, **_CNN),
        normal(4, 1, 36, 36),
        {"*cnn.*": itself(F.relu), "*extractor.linear.0": itself(F.relu)},
        task=patterns((1, 36, 36)),
    ),
    Model(
        "SAC critic (SB3)",
        _critic,
        lambda: (*normal(12, 5)(), *normal(12, 2)()),
        {"*qf?.[02]": itself(F.relu)},
    ),
)
