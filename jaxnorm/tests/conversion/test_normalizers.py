"""Every normalizer of ours behind a layer: its gate is what the activation finally sees."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm
from jaxnorm.linen.registry import NORMALIZERS as IN_LINEN
from jaxnorm.nnx.registry import NORMALIZERS as IN_NNX
from parity_tests.models import flax_networks
from parity_tests.models import jax as models
from parity_tests.tolerances import GATE

#: What has to be said, and where there is space also other ways through the code.
KNOBS: dict[str, dict[str, Any]] = {"GroupNorm": {"num_groups": 2}}
WITH_SPACE: dict[str, dict[str, Any]] = {
    "BatchNorm": {"convention": "torch"},
    "InstanceNorm": {"track_running_stats": True},
    "OnlineNorm": {"guard": "layer_scaling"},
    "StochasticNorm": {"statistics": "batch"},
    "MixtureNorm": {"responsibility_gradient": True, "use_scale": False, "steps": 1},
}
WITHOUT_SPACE: dict[str, dict[str, Any]] = {"SwitchableNorm": {"statistics": ("layer", "batch")}}


class Branch(NamedTuple):
    """A layer, a normalizer of this name and an activation."""

    kind: str
    space: bool
    behind: bool  # whether the normalizer comes behind the activation

    @property
    def name(self) -> str:
        """Of its parts in a model."""
        return "_".join((self.kind, "conv" if self.space else "dense", "ba"[not self.behind]))

    @property
    def knobs(self) -> dict[str, Any]:
        """Of the normalizer."""
        more = WITH_SPACE if self.space else WITHOUT_SPACE
        return {**KNOBS.get(self.kind, {}), **more.get(self.kind, {})}

    def run(self, x: Any, layer: Any, norm: Any) -> Any:
        """What it makes of images."""
        z = layer(x if self.space else x.mean((1, 2)))
        y = norm(nn.silu(z)) if self.behind else nn.silu(norm(z))
        return y.reshape(len(y), -1)


def _names(package: Any, known: tuple[type, ...]) -> list[str]:
    """The normalizers of an API."""
    every = vars(package.normalizers).items()
    return [name for name, kind in every if inspect.isclass(kind) and issubclass(kind, known)]


NAMES = _names(jaxnorm.linen, IN_LINEN)
#: These without space, the others with it.
DENSE = {"BatchRenorm", "GroupNorm", "LayerNorm", "ModeNorm", "RMSNorm", "SwitchableNorm"}
#: Each once before the activation; behind one no layer waits for it.
BRANCHES = [Branch(name, name not in DENSE, False) for name in NAMES]
BRANCHES += [Branch("MixtureNorm", False, True), Branch("BatchRenorm", True, True)]


class Linen(nn.Module):
    """All of them, side by side."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Run them; the last layer has no activation."""
        parts = []
        for branch in BRANCHES:
            kind = getattr(jaxnorm.linen.normalizers, branch.kind)
            trains = "use_running_average" in inspect.signature(kind.__call__).parameters
            mode = {"use_running_average": False} if trains else {}
            norm = kind(**branch.knobs, name=f"{branch.name}_norm")
            name = branch.name
            layer = nn.Conv(4, (2, 2), name=name) if branch.space else nn.Dense(4, name=name)
            parts.append(branch.run(x, layer, lambda z, norm=norm, mode=mode: norm(z, **mode)))
        return nn.Dense(3, name="last")(jnp.concatenate(parts, -1))


class Nnx(nnx.Module):
    """All of them, side by side."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        width = 0
        for branch in BRANCHES:
            kind = getattr(jaxnorm.nnx.normalizers, branch.kind)
            conv = branch.space
            layer = nnx.Conv(3, 4, (2, 2), rngs=rngs) if conv else nnx.Linear(3, 4, rngs=rngs)
            setattr(self, branch.name, layer)
            setattr(self, f"{branch.name}_norm", kind(4, **branch.knobs, rngs=rngs))
            width += 36 if conv else 4
        self.last = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Run them; the last layer has no activation."""
        parts = [
            branch.run(x, getattr(self, branch.name), getattr(self, f"{branch.name}_norm"))
            for branch in BRANCHES
        ]
        return self.last(jnp.concatenate(parts, -1))


def _images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 3, 3, 3)) + 0.5


def test_every_normalizer_is_known_in_both_apis() -> None:
    assert sorted(NAMES) == sorted(_names(jaxnorm.nnx, IN_NNX))


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_layer_before(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if api == "linen":
        arguments = {"mutable": ["batch_stats"], "rngs": True}
        monkeypatch.setitem(flax_networks.LINEN, api, (Linen, _images, arguments))
        result = models.linen(api)
    else:
        monkeypatch.setitem(flax_networks.NNX, api, Nnx)
        monkeypatch.setattr(models, "images", _images)
        result = models.of_nnx(api)
    found = {row.layer: row.gate for row in result.report.converted}
    wrong = {}
    for branch in BRANCHES:
        gate = found[branch.name]
        at = f"{branch.name}_norm"
        if gate != "silu" if branch.behind else (gate.at, gate.gate) != (at, "silu"):
            wrong[branch.name] = gate
    assert not wrong
    assert result.unequal == []
    assert result.error <= GATE["float64"], result.errors
