"""Layers of Flax in the place of ours."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


def flax_layer(module: nn.Module, kind: type[Any], **settings: Any) -> Any:
    """A layer of Flax with the fields of ours, or these, and with our parameters and states.

    Flax reads its fields itself, so what a convention says has to be in them.
    """
    names = {field.name for field in dataclasses.fields(kind) if field.init} - {"parent", "name"}
    fields = {name: getattr(module, name) for name in names & vars(module).keys()}
    layer = kind(**{**fields, **settings})
    nn.share_scope(module, layer)
    return layer


def channels_of(module: nn.Module) -> int | None:
    """For how many channels a layer has parameters or states; None if it has none yet."""
    arrays = [module.get_variable("params", name) for name in ("scale", "bias")]
    arrays += [module.get_variable("batch_stats", name) for name in ("mean", "var")]
    sizes = [jnp.size(nn.meta.unbox(array)) for array in arrays if array is not None]
    return sizes[0] if sizes else None
