"""The dropout that Flax's attention functions draw by themselves, in no module of dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from parity_tests.port.sides.jax import Record

#: They multiply with ``bernoulli(key, p) / p``.
MODULES = ("flax.linen.attention", "flax.nnx.nn.attention")


@contextmanager
def watched(record: Record) -> Iterator[None]:
    """As long as this lasts, it is noted, and left out unless the record lets dropout draw."""

    def bernoulli(key: Any, p: Any, shape: Any) -> Any:
        path = next((c.key[0] for c in reversed(record.calls) if c.ended < 0), "")
        if all(dropped.path != path for dropped in record.dropped):
            record.drops(path, round(1 - float(p), 9))
        return jax.random.bernoulli(key, p, shape) if record.dropout else jnp.full(shape, p)

    modules = [import_module(name) for name in MODULES]
    before = [vars(module)["random"] for module in modules]
    for module in modules:
        vars(module)["random"] = SimpleNamespace(bernoulli=bernoulli)
    try:
        yield
    finally:
        for module, random in zip(modules, before, strict=True):
            vars(module)["random"] = random
