"""What the layers with running statistics share: errors, axes, devices, dtypes, initial values."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import PartitionSpec as P

import jaxnorm
import torchnorm

LINEN, NNX, TORCH = jaxnorm.linen.normalizers, jaxnorm.nnx.normalizers, torchnorm.normalizers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2, 3)).astype(np.float32)
NAMES = (
    "AttentiveNorm",
    "BatchRenorm",
    "InstanceEnhancementBatchNorm",
    "OnlineNorm",
    "SwitchableNorm",
)

#: Class, knobs, shape of x with the channels last, what is said.
REFUSED: list[tuple[str, dict[str, Any], tuple[int, ...], str]] = [
    *((name, {}, (3,), "x: got shape (3,), expected at least 2 axes") for name in NAMES),
    ("BatchRenorm", {}, (1, 3), "x: got shape (1, 3), expected more than one value per channel"),
    ("InstanceEnhancementBatchNorm", {}, (1, 3), "expected more than one value per channel"),
    ("SwitchableNorm", {}, (1, 1, 3), "expected more than one value per channel"),
    ("AttentiveNorm", {}, (1, 4, 3), "expected more than one sample in training"),
    ("AttentiveNorm", {"unbiased": True}, (4, 1, 3), "unbiased: got True with 1 position"),
    ("SwitchableNorm", {"unbiased": True}, (4, 1, 3), "unbiased: got True with 1 position"),
    ("SwitchableNorm", {}, (4, 3), "statistics: got 'instance' for x of shape (4, 3)"),
    ("SwitchableNorm", {"statistics": ()}, (4, 2, 3), "expected at least one name, each once"),
    ("SwitchableNorm", {"statistics": ("layer",) * 2}, (4, 2, 3), "at least one name, each once"),
    ("SwitchableNorm", {"statistics": ("group",)}, (4, 2, 3), "statistics: got 'group', expected"),
    ("AttentiveNorm", {"attention": "relu"}, (4, 2, 3), "attention: got 'relu', expected one of"),
    ("AttentiveNorm", {"mixtures": 0}, (4, 2, 3), "mixtures: got 0, expected a finite number"),
    ("OnlineNorm", {"guard": "clip"}, (4, 2, 3), "guard: got 'clip', expected one of"),
    ("OnlineNorm", {"clamp": np.nan}, (4, 2, 3), "clamp: got nan, expected a finite number"),
    ("InstanceEnhancementBatchNorm", {"convention": "keras"}, (4, 2, 3), "convention: got 'keras'"),
    ("BatchRenorm", {"schedule_scale": 0.0}, (4, 2, 3), "schedule_scale: got 0.0, expected"),
    *((name, {"momentum": 1.5}, (4, 2, 3), "momentum: got ") for name in NAMES),
]


def _refusal(call: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("name", "knobs", "shape", "text"), REFUSED)
def test_all_packages_refuse_the_same_in_the_same_words(
    name: str, knobs: dict[str, Any], shape: tuple[int, ...], text: str
) -> None:
    x = np.ones(shape, np.float32)
    linen = getattr(LINEN, name)(use_running_average=False, **knobs)
    good = np.ones((4, 3) if len(shape) == 2 else (4, 2, 3), np.float32)

    def in_linen() -> Any:
        variables = linen.init(jax.random.key(0), jnp.asarray(good))
        return linen.apply(variables, jnp.asarray(x), mutable=["batch_stats"])

    def in_nnx() -> Any:
        return getattr(NNX, name)(3, **knobs, rngs=nnx.Rngs(0))(jnp.asarray(x))

    def in_torch() -> None:
        there = {**knobs, "momentum": 1 - knobs["momentum"]} if "momentum" in knobs else knobs
        layer = getattr(TORCH, name)(3, **there)
        before = copy.deepcopy(layer.state_dict())
        try:
            layer(torch.tensor(np.moveaxis(x, -1, 1) if x.ndim > 1 else x))
        finally:
            after = layer.state_dict()
            assert all(torch.equal(before[key], after[key]) for key in before)

    abstract = [functools.partial(jax.eval_shape, call) for call in (in_linen, in_nnx)]
    said = [_refusal(call) for call in (*abstract, in_torch)]
    assert text in said[0]
    assert said[0] == said[1]
    if "momentum" in knobs:
        said[2] = said[2].replace("-0.5", "1.5")
    channels_second = str(tuple(np.moveaxis(x, -1, 1).shape) if x.ndim > 1 else x.shape)
    assert said[0].replace(str(shape), channels_second) == said[2]


@pytest.mark.parametrize("name", NAMES)
def test_other_channels_and_integers_are_refused(name: str) -> None:
    for layer, x in (
        (getattr(NNX, name)(5, rngs=nnx.Rngs(0)), jnp.asarray(X)),
        (getattr(TORCH, name)(5), torch.tensor(X).movedim(-1, 1)),
    ):
        said = _refusal(lambda layer=layer, x=x: layer(x))
        assert "expected 5 channels along axis" in said
    whole = np.ones((4, 2, 3), np.int32)
    texts = {
        _refusal(lambda: getattr(NNX, name)(3, rngs=nnx.Rngs(0))(jnp.asarray(whole))),
        _refusal(lambda: getattr(TORCH, name)(3)(torch.tensor(whole).movedim(-1, 1))),
        _refusal(lambda: getattr(LINEN, name)().init(jax.random.key(0), whole, False)),
    }
    assert len(texts) == 1
    assert "x: got dtype int32" in texts.pop()


@pytest.mark.parametrize("name", NAMES)
def test_the_channels_may_lie_elsewhere_and_the_dtype_is_asked_for(name: str) -> None:
    kind = getattr(LINEN, name)
    layer = kind(use_running_average=False)
    moved = kind(use_running_average=False, axis=1, dtype=jnp.bfloat16)

    @jax.jit
    def both(x: Any) -> Any:
        variables = layer.init(jax.random.key(0), x)
        elsewhere = moved.apply(variables, jnp.moveaxis(x, -1, 1), mutable=["batch_stats"])
        return layer.apply(variables, x, mutable=["batch_stats"]), elsewhere

    (expected, new), (found, other) = both(X)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(found, np.float32), 1, -1), expected, rtol=2**-7, atol=1e-6
    )
    jax.tree.map(np.testing.assert_array_equal, new, other)
    low = torch.tensor(X).movedim(-1, 1).bfloat16()
    module = getattr(TORCH, name)(3)
    with torch.autocast("cpu"):
        assert module(low).dtype == torch.bfloat16
    assert {b.dtype for b in module.buffers()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "OnlineNorm"])
def test_a_batch_over_devices_is_one_batch(name: str) -> None:
    kind = getattr(LINEN, name)
    variables = jax.jit(kind(use_running_average=False).init)(jax.random.key(0), X)

    def run(layer: Any, x: Any) -> Any:
        return layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    @jax.jit
    def both(x: Any) -> Any:
        spread = jax.vmap(functools.partial(run, kind(axis_name="devices")), axis_name="devices")
        return run(kind(), x), spread(x.reshape(2, 2, *X.shape[1:]))

    (expected, new), (found, states) = both(X)
    np.testing.assert_allclose(found.reshape(X.shape), expected, rtol=0, atol=2e-6)
    for each, one in zip(jax.tree.leaves(states), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(each[0], one, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(each[0], each[1])


@pytest.mark.parametrize("name", NAMES)
def test_steps_can_be_scanned(name: str) -> None:
    """Whatever the inputs are, the statistics keep their dtype: float32, as in a checkpoint."""
    layer = getattr(LINEN, name)(use_running_average=False)
    variables = jax.eval_shape(layer.init, jax.random.key(0), X)
    narrow = jax.tree.map(
        lambda a: jnp.zeros(a.shape, jnp.float32 if a.dtype == jnp.float64 else a.dtype), variables
    )

    def step(stats: Any, x: Any) -> Any:
        y, new = layer.apply({**narrow, "batch_stats": stats}, x, mutable=["batch_stats"])
        return new["batch_stats"], y

    inputs = jnp.asarray(X, jnp.float64)[None]
    assert jax.eval_shape(lambda: jax.lax.scan(step, narrow["batch_stats"], inputs))[1].shape == (
        1,
        *X.shape,
    )


def test_online_norm_goes_on_for_itself_on_each_device() -> None:
    """The states of the backward pass add up, as gradients of replicated arrays do."""
    layer = LINEN.OnlineNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), X)
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))

    def added(beside: Any, x: Any) -> Any:
        given = {**variables, "backward_stats": beside}
        return jnp.sum(layer.apply(given, x, mutable=["batch_stats"])[0] ** 2)

    specs = {"in_specs": (P(), P("devices")), "out_specs": P()}
    spread = jax.jit(jax.shard_map(jax.grad(added), mesh=mesh, **specs))
    found = spread(variables["backward_stats"], jnp.asarray(X))
    alone = jax.jit(jax.grad(added))
    parts = [alone(variables["backward_stats"], jnp.asarray(part)) for part in (X[:2], X[2:])]
    for name in found:
        np.testing.assert_allclose(found[name], parts[0][name] + parts[1][name], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nnx_trains_under_jit_and_is_told_by_the_model(name: str) -> None:
    model = nnx.Sequential(getattr(NNX, name)(3, rngs=nnx.Rngs(0)))
    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    y = nnx.jit(lambda model, x: model(x))(model, X)
    after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    model.eval()
    assert np.abs(np.asarray(model(X)) - np.asarray(y)).max() > 1e-3
    still = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, after, still)
    model.layers[0].use_running_average = None
    assert "use_running_average: got None" in _refusal(lambda: model(X))


@pytest.mark.parametrize("name", NAMES)
def test_torch_modules_are_made_again_and_copied(name: str) -> None:
    kind = getattr(TORCH, name)
    torch.manual_seed(0)
    first = kind(3)
    made = kind(3, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    made.reset_parameters()
    for key, value in first.state_dict().items():
        torch.testing.assert_close(made.state_dict()[key], value, rtol=0, atol=0)
    x = torch.tensor(X).movedim(-1, 1)
    first(x)
    again = copy.deepcopy(first)
    torch.testing.assert_close(again(x), first(x), rtol=0, atol=0)
    first.reset_parameters()
    for key in dict(first.named_buffers()):
        torch.testing.assert_close(first.state_dict()[key], made.state_dict()[key])
    assert f"{name}(3, eps=" in repr(first)
