"""Another normalizer in the place of a model's, in nnx and linen."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxnorm
from jaxnorm.linen.normalizers import replace as replacing
from jaxnorm.linen.registry import NORMALIZERS
from jaxnorm.nnx.normalizers import replace


def _model() -> Any:
    rngs = nnx.Rngs(0)
    parts = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.relu
    return nnx.Sequential(*parts, nnx.BatchNorm(4, rngs=rngs))


def _groups(channels: int) -> nnx.Module:
    return nnx.GroupNorm(channels, num_groups=2, rngs=nnx.Rngs(0))


def test_what_both_have_stays_and_the_rest_goes() -> None:
    model = _model()
    model.eval()
    scale = model.layers[1].scale
    assert replace(model, _groups, skip=["layers/3"]) == ["layers/1"]
    assert isinstance(model.layers[1], nnx.GroupNorm)
    assert isinstance(model.layers[3], nnx.BatchNorm)
    assert model.layers[1].scale is scale
    paths = ["/".join(map(str, p)) for p, _ in nnx.to_flat_state(nnx.state(model, nnx.BatchStat))]
    assert sorted(paths) == ["layers/3/mean", "layers/3/var"]


def test_running_statistics_are_taken_over() -> None:
    model = _model()
    model.eval()
    model.layers[1].mean.set_value(jnp.full(4, 3.0, jnp.float32))
    replace(model, lambda channels: nnx.BatchNorm(channels, epsilon=0.5, rngs=nnx.Rngs(0)))
    assert model.layers[1].epsilon == 0.5
    assert model.layers[1].use_running_average
    np.testing.assert_array_equal(model.layers[1].mean.get_value(), 3.0)


def test_one_that_stands_in_two_places_is_replaced_by_one() -> None:
    norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    model = nnx.Sequential(norm, nnx.Sequential(norm))
    assert replace(model, _groups) == ["layers/0"]
    assert model.layers[0] is model.layers[1].layers[0]
    assert isinstance(model.layers[0], nnx.GroupNorm)


def test_lists_and_dicts_hold_them_too() -> None:
    class Holder(nnx.Module):
        def __init__(self) -> None:
            norms = [nnx.BatchNorm(4, rngs=nnx.Rngs(0)) for _ in range(3)]
            self.items = nnx.List([nnx.Dict({"a": norms[0]}), norms[1]])
            self.last = norms[2]

    model = Holder()
    assert sorted(replace(model, _groups)) == ["items/0/a", "items/1", "last"]
    assert isinstance(model.items[0]["a"], nnx.GroupNorm)
    assert isinstance(model.items[1], nnx.GroupNorm)
    assert isinstance(model.last, nnx.GroupNorm)


def test_bad_input_changes_nothing() -> None:
    model = _model()
    before = list(model.layers)
    with pytest.raises(TypeError, match=r"model: got int, expected a flax\.nnx\.Module"):
        replace(3, _groups)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"make: got NoneType, expected a flax\.nnx\.Module"):
        replace(model, lambda channels: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="got a Linear without one, expected a model that"):
        replace(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), _groups)
    with pytest.raises(ValueError, match="got one itself"):
        replace(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), _groups)
    assert all(one is other for one, other in zip(before, model.layers, strict=True))
    jaxnorm.nnx.convert(model, example_input=jnp.ones((2, 6, 6, 3)))
    with pytest.raises(ValueError, match="got a converted one, expected to replace before convert"):
        replace(model, _groups)


#: The normalizers of channels of both APIs, and what has to be said.
KINDS = [
    name
    for name, kind in vars(jaxnorm.linen.normalizers).items()
    if inspect.isclass(kind) and issubclass(kind, NORMALIZERS) and name != "MultiplicativeNoise"
]
KNOBS: dict[str, dict[str, Any]] = {"GroupNorm": {"num_groups": 2}}


@pytest.mark.parametrize("name", KINDS)
def test_each_of_ours_takes_over_what_it_has(name: str) -> None:
    def make(channels: int) -> Any:
        kind = getattr(jaxnorm.nnx.normalizers, name)
        return kind(channels, **KNOBS.get(name, {}), rngs=nnx.Rngs(0))

    model = _model()
    old = model.layers[1]
    old.mean.set_value(jnp.full(4, 3.0, jnp.float32))
    old.var.set_value(jnp.full(4, 4.0, jnp.float32))
    replace(model, make, skip=["layers/3"])
    new = model.layers[1]
    for variable in ("scale", "bias", "mean", "var"):
        now, was = getattr(new, variable, None), getattr(old, variable)
        there = isinstance(now, nnx.Variable) and now.get_value().shape == was.get_value().shape
        assert (now is was) == there
    if name == "BatchRenorm":
        np.testing.assert_allclose(new.std.get_value(), 2 + new.epsilon)
    assert nnx.eval_shape(lambda model, x: model(x), model, jnp.ones((3, 6, 6, 3))).shape[-1] == 4


def test_the_channels_of_each_of_flax_are_known() -> None:
    found = []
    norm = nnx.GroupNorm(6, num_groups=3, rngs=nnx.Rngs(0))
    model = nnx.Sequential(norm, nnx.LayerNorm(5, rngs=nnx.Rngs(0)))
    replace(
        model,
        lambda channels: found.append(channels) or nnx.BatchNorm(channels, rngs=nnx.Rngs(0)),
        of=(nnx.GroupNorm, nnx.LayerNorm),
    )
    assert found == [6, 5]


@pytest.mark.parametrize("name", KINDS)
def test_linen_runs_each_of_ours(name: str) -> None:
    x = jnp.ones((6, 5, 5, 3))
    with replacing(lambda old: getattr(jaxnorm.linen.normalizers, name)(**KNOBS.get(name, {}))):
        keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
        variables = jax.eval_shape(lambda: Net().init(keys, x, train=True))
        out, _ = jax.eval_shape(
            lambda variables: Net().apply(
                variables, x, train=True, mutable=["batch_stats"], rngs={"noise": keys["noise"]}
            ),
            variables,
        )
    assert out.shape == (6, 5, 5, 4)
    kind = getattr(jaxnorm.linen.normalizers, name)(**KNOBS.get(name, {}))
    mode = inspect.signature(type(kind).__call__).parameters.keys() & {"use_running_average"}
    alone = jax.eval_shape(
        lambda: kind.init(keys, jnp.ones((6, 5, 5, 4)), **dict.fromkeys(mode, False))
    )
    for collection, tree in alone.items():
        assert jax.tree.map(jnp.shape, variables[collection]["BatchNorm_0"]) == jax.tree.map(
            jnp.shape, tree
        )


class Net(nn.Module):
    """Two normalized layers, one of them told at the call if it trains."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Run them."""
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))
        return nn.BatchNorm()(nn.Dense(4)(x), use_running_average=not train)


def _rows() -> Any:
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))


def test_linen_runs_the_other_on_the_same_variables() -> None:
    x = _rows()
    variables = Net().init(jax.random.key(0), x, train=True)
    scaled = jax.tree.map(lambda leaf: leaf + 0.25, variables)
    with replacing(lambda old: nn.LayerNorm(), skip=["BatchNorm_1"]) as paths:
        out, new = Net().apply(scaled, x, train=True, mutable=["batch_stats"])
    assert paths == ["BatchNorm_0"]
    # Nobody reads the statistics of what is not there.
    np.testing.assert_array_equal(new["batch_stats"]["BatchNorm_0"]["mean"], 0.25)
    params = scaled["params"]
    z = nn.Dense(4).apply({"params": params["Dense_0"]}, x)
    u = nn.LayerNorm().apply({"params": params["BatchNorm_0"]}, z)
    v = nn.Dense(4).apply({"params": params["Dense_1"]}, jax.nn.relu(u))
    norm = {"params": params["BatchNorm_1"], "batch_stats": scaled["batch_stats"]["BatchNorm_1"]}
    last, _ = nn.BatchNorm(use_running_average=False).apply(norm, v, mutable=["batch_stats"])
    np.testing.assert_allclose(out, last, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_linen_tells_another_if_it_trains(train: bool) -> None:
    x = _rows()
    variables = Net().init(jax.random.key(0), x, train=True)
    plain, _ = Net().apply(variables, x, train=train, mutable=["batch_stats"])
    with replacing(lambda old: nn.BatchNorm(momentum=0.5)) as paths:
        other, new = Net().apply(variables, x, train=train, mutable=["batch_stats"])
    assert paths == ["BatchNorm_0", "BatchNorm_1"]
    np.testing.assert_array_equal(plain, other)
    mean = new["batch_stats"]["BatchNorm_0"]["mean"]
    z = x @ variables["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(mean, z.mean(0) / 2 if train else 0 * mean, atol=1e-12)


def test_linen_finds_the_gate_behind_the_other() -> None:
    x = _rows()
    with replacing(lambda old: nn.LayerNorm()):
        variables = Net().init(jax.random.key(0), x, train=True)
        report = jaxnorm.linen.find_gates(Net(), variables, x, train=True)
    assert "batch_stats" not in variables
    assert report.rows[0].reason == "deferred to BatchNorm_0"


def test_linen_bad_input() -> None:
    with (
        pytest.raises(ValueError, match="got a model without one, expected modules of BatchNorm"),
        replacing(lambda old: nn.LayerNorm()),
    ):
        nn.Dense(3).init(jax.random.key(0), jnp.ones((2, 3)))
    with (
        pytest.raises(TypeError, match=r"make: got int, expected a flax\.linen\.Module"),
        replacing(lambda old: 3),  # type: ignore[arg-type, return-value]
    ):
        Net().init(jax.random.key(0), _rows(), train=True)
