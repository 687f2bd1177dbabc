"""The rule taken back out of an nnx model: `revert`."""

from typing import Any

from jaxnorm.nnx.base import Neuronwise
from jaxnorm.nnx.modules import MARK, become, modules
from jaxnorm.nnx.registry import KINDS

_BASES = {ours: base for base, ours in KINDS.items()}


def revert(model: Any) -> None:
    """Make the layers that `convert` changed Flax's again, in place.

    Forward (exact): unchanged. Layers that were built as `jaxnorm.nnx` layers stay what they are.

    Args:
        model: what was converted, or a part or copy of it.

    Raises:
        Nothing: a model without converted layers stays as it is.

    Example:
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
        >>> before = nnx.graphdef(layer)
        >>> report = jaxnorm.nnx.convert(layer, {"*": "relu"})
        >>> jaxnorm.nnx.revert(layer)
        >>> nnx.graphdef(layer) == before
        True
    """
    for module, _ in modules(model).values():
        if getattr(module, MARK, False) and isinstance(module, Neuronwise):
            for name in ("gate", "rule", "axis_name", MARK):
                delattr(module, name)
            if hasattr(module, "neuron_stats"):
                del module.neuron_stats
            if type(module) in _BASES:  # others were made for a subclass
                become(module, _BASES[type(module)])
        while base := getattr(type(module), "_neuronwise_base", None):
            if hasattr(module, MARK):
                delattr(module, MARK)
            become(module, base)
