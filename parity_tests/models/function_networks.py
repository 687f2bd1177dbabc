"""Networks of Equinox and Haiku that know nothing of jaxnorm.

Each notes what its layers are given and the slopes behind them where it is asked to: that is what a
person read off the architecture.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

#: Kernel -> (what it is multiplied by [..., I], the slope [..., O], whether it has a bias).
Seen = dict[str, tuple[Any, Any, bool]]


class Function(NamedTuple):
    """How a network is made.

    Attributes:
        make: () -> (parameters, fn, (parameters, x) -> `Seen`, x).
        needs: what it is made of.
    """

    make: Callable[[], tuple[Any, Callable[..., Any], Callable[..., Seen], Any]]
    needs: tuple[str, ...]


def slope(phi: Any, z: Any) -> Any:
    """The derivative of an elementwise function, or ones."""
    return jnp.ones_like(z) if phi is None else jax.vjp(phi, z)[1](jnp.ones_like(z))[0]


def patches(x: Any, size: int) -> Any:
    """Windows beside each other, of [N, C, H, W]: [N, h, w, size size C]."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // size, size, w // size, size)
    return x.transpose(0, 2, 4, 3, 5, 1).reshape(n, h // size, w // size, -1)


def _images(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) + 0.5)


def equinox_mixer() -> Any:
    """MLP-Mixer; its second block is the first one again."""
    eqx: Any = importlib.import_module("equinox")
    keys = jax.random.split(jax.random.key(0), 6)
    linear = eqx.nn.Linear
    model = {
        "patch": eqx.nn.Conv2d(3, 8, 2, 2, key=keys[0]),
        "norm": eqx.nn.LayerNorm(8),
        "tokens_in": linear(16, 12, key=keys[1]),
        "tokens_out": linear(12, 16, key=keys[2]),
        "channels_in": linear(8, 12, key=keys[3]),
        "channels_out": linear(12, 8, key=keys[4]),
        "head": linear(8, 3, use_bias=False, key=keys[5]),
    }
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def one(model: Any, x: Any, note: Any = None) -> Any:
        def dense(name: str, x: Any, phi: Any = None) -> Any:
            z = jax.vmap(model[name])(x)
            if note is not None:
                note.setdefault(name, []).append((x, slope(phi, z)))
            return z if phi is None else phi(z)

        x = model["patch"](x).reshape(8, -1).T
        for _ in range(2):
            y = dense("tokens_in", jax.vmap(model["norm"])(x).T, jax.nn.gelu)
            x = x + dense("tokens_out", y).T
            y = dense("channels_in", jax.vmap(model["norm"])(x), jax.nn.gelu)
            x = x + dense("channels_out", y)
        return dense("head", jnp.mean(x, axis=0)[None])[0]

    def fn(params: Any, x: Any) -> Any:
        return jax.vmap(lambda x: one(eqx.combine(params, static), x))(x)

    def look(params: Any, x: Any) -> Seen:
        def noted(x: Any) -> Any:
            note: dict[str, Any] = {}
            one(eqx.combine(params, static), x, note)
            return note

        seen: Seen = {}
        for name, calls in jax.vmap(noted)(x).items():
            given, slopes = map(jnp.concatenate, zip(*calls, strict=True))
            seen[f"{name}/weight"] = given, slopes, name != "head"
        given = patches(x, 2)
        seen["patch/weight"] = given, jnp.ones((*given.shape[:-1], 8)), True
        return seen

    return params, fn, look, _images(6, 3, 8, 8)


def haiku_transformer() -> Any:
    """One block of a transformer, with a gated unit and no biases in it, and a policy's head."""
    hk: Any = importlib.import_module("haiku")

    def network(x: Any, note: Any = None) -> Any:
        def dense(name: str, size: int, x: Any, phi: Any = None, bias: bool = True) -> Any:
            z = hk.Linear(size, with_bias=bias, name=name)(x)
            if note is not None:
                note[f"{name}/w"] = x, slope(phi, z), bias
            return z

        def norm(x: Any) -> Any:
            return hk.LayerNorm(-1, True, True)(x)

        x = dense("embed", 8, x)
        y = norm(x)
        q, k, v = (dense(name, 8, y) for name in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k) / 8**0.5)
        x = x + dense("out", 8, jnp.einsum("nqk,nkd->nqd", weights, v))
        y = norm(x)
        gate = dense("gate", 12, y, jax.nn.silu, bias=False)
        up = dense("up", 12, y, bias=False)
        if note is not None:  # each is multiplied by what the other has become
            note["gate/w"] = y, note["gate/w"][1] * up, False
            note["up/w"] = y, jax.nn.silu(gate), False
        x = x + dense("down", 8, jax.nn.silu(gate) * up, bias=False)
        hidden = jnp.tanh(dense("hidden", 6, jnp.mean(norm(x), axis=1), jnp.tanh))
        return dense("head", 4, hidden)

    model = hk.without_apply_rng(hk.transform(network))
    x = _images(6, 5, 7)
    params = model.init(jax.random.key(0), x)

    def look(params: Any, x: Any) -> Seen:
        note: Seen = {}
        model.apply(params, x, note)
        return note

    return params, model.apply, look, x


FUNCTIONS = {
    "MLP-Mixer (Equinox)": Function(equinox_mixer, ("equinox",)),
    "Transformer (Haiku)": Function(haiku_transformer, ("haiku",)),
}
