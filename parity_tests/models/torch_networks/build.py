"""How networks of other packages are built: when they are wanted, and from a configuration."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

TOKENS = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
ENCODER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
}
LLAMA = {**ENCODER, **TOKENS, "num_key_value_heads": 1}


def library(module: str, name: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """() -> what `module.name` makes of these arguments."""
    return lambda: getattr(importlib.import_module(module), name)(*args, **kwargs)


def hugging_face(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """() -> a network of the transformers package."""

    def build() -> nn.Module:
        # Silent about what is missing on this machine: this is about the networks.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module("transformers")
            package.logging.set_verbosity_error()
            settings = getattr(package, config)(**options)
            place = package
            if not hasattr(package, kind):
                family = config.removesuffix("Config").lower()
                place = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
            return getattr(place, kind)(settings)

    return build
