"""What a command needs, said in words where it is missing. Imports nothing but Python's own."""

from __future__ import annotations

import sys
from importlib.util import find_spec

#: What the implementations of a framework import.
FRAMEWORKS = {"jax": ("jax", "flax", "optax"), "torch": ("torch",)}
#: What both commands import.
COMMON = ("numpy", "ml_dtypes", "rich", "tyro")
#: Packages that only some networks of `models` are made of; all others are in the extra [test].
NETWORKS = (
    "diffusers",
    "einops",
    "gymnasium",
    "monai",
    "peft",
    "rtdl_num_embeddings",
    "rtdl_revisiting_models",
    "stable_baselines3",
    "timm",
    "torch_geometric",
    "torchvision",
)


class Missing(Exception):
    """A module that is not installed, and the extra that brings it."""


def require(*modules: str) -> None:
    """Raise `Missing` unless all these modules are installed."""
    for name in modules:
        if find_spec(name) is None:
            extra = "networks" if name in NETWORKS else "test"
            raise Missing(
                f"got no module named {name!r}, expected the extra [{extra}]; "
                f"install it with: pip install 'neuronwise-norm[{extra}]'"
            )


def frameworks(chosen: str | None = None) -> tuple[str, ...]:
    """Those that are installed, or the chosen one; says so where one of them is left out.

    Raises:
        Missing: none is, or the chosen one is not.
    """
    if chosen is not None:
        require(*FRAMEWORKS[chosen])
        return (chosen,)
    found, left_out = [], []
    for framework, modules in FRAMEWORKS.items():
        try:
            require(*modules)
            found.append(framework)
        except Missing as error:
            left_out.append(f"{framework} is left out: {error}")
    if not found:
        raise Missing("; ".join(left_out))
    for text in left_out:
        print(text, file=sys.stderr)
    return tuple(found)
