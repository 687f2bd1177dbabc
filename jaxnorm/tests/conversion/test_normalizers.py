"""Every normalizer of ours behind a layer: its gate is what the activation finally sees."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm
from jaxnorm.conversion.decisions import Deferred
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
BRANCHES = tuple(Branch(name, name not in DENSE, False) for name in NAMES)
BRANCHES += (Branch("MultiplicativeNoise", False, True), Branch("BatchRenorm", True, True))
#: Of each kind of layer one: made of one of Flax's, of ours, with a backward pass of its own.
FEW = tuple(each for each in BRANCHES if each.kind in ("InstanceNorm", "BatchRenorm", "OnlineNorm"))


class Linen(nn.Module):
    """Branches, side by side."""

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Run them; the last layer has no activation."""
        parts = []
        for branch in self.branches:
            kind = getattr(jaxnorm.linen.normalizers, branch.kind)
            trains = "use_running_average" in inspect.signature(kind.__call__).parameters
            mode = {"use_running_average": False} if trains else {}
            norm = kind(**branch.knobs, name=f"{branch.name}_norm")
            name = branch.name
            layer = nn.Conv(4, (2, 2), name=name) if branch.space else nn.Dense(4, name=name)
            parts.append(branch.run(x, layer, lambda z, norm=norm, mode=mode: norm(z, **mode)))
        return nn.Dense(3, name="last")(jnp.concatenate(parts, -1))


class Nnx(nnx.Module):
    """Branches, side by side."""

    def __init__(self, branches: tuple[Branch, ...], rngs: nnx.Rngs) -> None:
        width, self.branches = 0, branches
        for branch in branches:
            kind = getattr(jaxnorm.nnx.normalizers, branch.kind)
            conv = branch.space
            layer = nnx.Conv(3, 4, (2, 2), rngs=rngs) if conv else nnx.Linear(3, 4, rngs=rngs)
            setattr(self, branch.name, layer)
            size = () if branch.kind == "MultiplicativeNoise" else (4,)
            setattr(self, f"{branch.name}_norm", kind(*size, **branch.knobs, rngs=rngs))
            width += 36 if conv else 4
        self.last = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Run them; the last layer has no activation."""
        parts = [
            branch.run(x, getattr(self, branch.name), getattr(self, f"{branch.name}_norm"))
            for branch in self.branches
        ]
        return self.last(jnp.concatenate(parts, -1))


def _images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 3, 3, 3)) + 0.5


def test_every_normalizer_is_known_in_both_apis() -> None:
    assert sorted(NAMES) == sorted(_names(jaxnorm.nnx, IN_NNX))


def _wrong(report: Any, branches: tuple[Branch, ...]) -> dict[str, Any]:
    """The gates that are not where they should be."""
    found = {row.layer: row.gate for row in report.converted}
    short = {name: (g.at, g.gate) if isinstance(g, Deferred) else g for name, g in found.items()}
    expected = {
        each.name: "silu" if each.behind else (f"{each.name}_norm", "silu") for each in branches
    }
    return {name: short[name] for name, gate in expected.items() if short[name] != gate}


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_gates_are_found(api: str) -> None:
    x = jnp.asarray(_images())
    if api == "linen":
        model, keys = Linen(BRANCHES), {"params": jax.random.key(0), "noise": jax.random.key(1)}
        variables = jax.eval_shape(model.init, keys, x)
        more = {"mutable": ["batch_stats"], "rngs": {"noise": jax.random.key(1)}}
        report = jaxnorm.linen.find_gates(model, variables, x, **more)
    else:
        model = models.build(lambda: Nnx(BRANCHES, nnx.Rngs(0)))
        report = jaxnorm.nnx.convert(model, example_input=x)
    assert not _wrong(report, BRANCHES)
    # What is no layer and has a matrix is a row, and stays as it is.
    left = [row.kind for row in report.rows if row not in report.converted]
    assert sorted(left) == ["AttentiveNorm", "ModeNorm"]


@pytest.mark.parametrize(
    "branches", [FEW, pytest.param(BRANCHES, marks=pytest.mark.slow)], ids=["few", "all"]
)
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_layer_before(
    api: str, branches: tuple[Branch, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if api == "linen":
        arguments = {"mutable": ["batch_stats"], "rngs": True}
        made = (lambda: Linen(branches), _images, arguments)
        monkeypatch.setitem(flax_networks.LINEN, api, made)
        result = models.linen(api)
    else:
        monkeypatch.setitem(flax_networks.NNX, api, lambda rngs: Nnx(branches, rngs))
        monkeypatch.setattr(models, "images", _images)
        result = models.of_nnx(api)
    assert not _wrong(result.report, branches)
    assert result.unequal == []
    assert result.error <= 10 * GATE["float64"], result.errors
