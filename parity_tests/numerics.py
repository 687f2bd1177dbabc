"""Exact arithmetic for the time of a comparison: 64 bits where asked for, full products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def exact(
    frameworks: tuple[str, ...] = ("jax", "torch"), *, strict: bool = False
) -> Iterator[None]:
    """Configure the named frameworks and put everything back; others are not imported.

    Args:
        frameworks: "jax", "torch" or both.
        strict: also raise where JAX would promote ranks silently.
    """
    with ExitStack() as stack:
        if "jax" in frameworks:
            stack.enter_context(_exact_jax(strict=strict))
        if "torch" in frameworks:
            stack.enter_context(_exact_torch())
        yield


@contextmanager
def _exact_jax(*, strict: bool) -> Iterator[None]:
    """JAX keeps its configuration in one object."""
    import jax

    wanted = {"jax_enable_x64": True, "jax_default_matmul_precision": "highest"}
    if strict:
        wanted["jax_numpy_rank_promotion"] = "raise"
    before = {name: getattr(jax.config, name) for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextmanager
def _exact_torch() -> Iterator[None]:
    """PyTorch keeps its configuration in three places."""
    import torch

    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
