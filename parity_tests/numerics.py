"""Exact arithmetic for the time of a comparison: 64 bits where asked for, full products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from parity_tests.requirements import Missing


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


@contextmanager
def on_device(frameworks: tuple[str, ...], kind: str) -> Iterator[None]:
    """Let the named frameworks put new arrays on a device.

    Args:
        frameworks: "jax", "torch" or both.
        kind: cpu, cuda or tpu; JAX calls the second one gpu too.

    Raises:
        Missing: one of them has no such device.
    """
    with ExitStack() as stack:
        if "jax" in frameworks:
            stack.enter_context(_jax_on(kind))
        if "torch" in frameworks:
            stack.enter_context(_torch_on(kind))
        yield


def _jax_on(kind: str) -> Any:
    import jax

    try:
        return jax.default_device(jax.devices(kind)[0])
    except RuntimeError as error:
        raise _no_device("JAX", kind, jax.default_backend()) from error


def _torch_on(kind: str) -> Any:
    import torch

    try:
        torch.zeros(1, device=kind)
    except (AssertionError, RuntimeError) as error:
        found = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise _no_device("PyTorch", kind, found) from error
    return torch.device(kind)


def _no_device(framework: str, kind: str, found: str) -> Missing:
    return Missing(
        f"device: got {kind!r}, expected one that {framework} has here: {found}; "
        "leave the other framework out with --only"
    )
