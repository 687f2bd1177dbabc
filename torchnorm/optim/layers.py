"""Which layers of a model an optimizer learns, and how their weights lie."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.modules.base import Neuronwise
from torchnorm.operations.convolution import swap_channels

#: PyTorch's layers that are linear in their weight; of exactly these classes.
_KINDS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
#: Under these names wrappers keep what they wrap: torch.compile, checkpoint_wrapper.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


class Pair(NamedTuple):
    """What lies at a layer's weight and at its bias, each or None."""

    weight: Any
    bias: Any


def check_model(model: Any) -> None:
    """Raise a TypeError for what is no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")


def learned(optimizer: torch.optim.Optimizer) -> set[int]:
    """The ids of the parameters that the optimizer learns."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def recording(model: nn.Module) -> dict[str, Neuronwise]:
    """Name -> layer, of those that can record; raises where they do not fit together."""
    layers: dict[str, Neuronwise] = {}
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, Neuronwise) or module.rule.gradient == "plain":
            continue
        name = _name(model, path)
        if module.rule.gradient not in (None, "plain_with_statistics"):
            raise ValueError(
                f"model: got the layer {name!r} with gradient={module.rule.gradient!r}, expected "
                "'plain_with_statistics', the default; a layer that adapts the gradient itself "
                "goes with SGD alone"
            )
        for what, parameter in (("weight", module.weight), ("bias", module.bias)):
            other = name if parameter is None else owners.setdefault(id(parameter), name)
            if other != name:
                raise ValueError(
                    f"model: got one {what} in the layers {other!r} and {name!r}, expected one "
                    "each; give one of them gradient='plain', or call one layer twice"
                )
        layers[name] = module
    if not layers:
        raise ValueError(
            "model: got one in which no layer records statistics, expected at least one; use the "
            "layers of torchnorm, or torchnorm.convert(model), with "
            "gradient='plain_with_statistics' or the default"
        )
    return layers


def _name(model: nn.Module, path: str) -> str:
    """The path without what DDP, torch.compile and checkpointing put into it."""
    parts: list[str] = []
    module: Any = model
    for part in path.split(".") if path else ():
        if not (part in _WRAPPED or (part == "module" and isinstance(module, _PARALLEL))):
            parts.append(part)
        module = module._modules[part]
    return ".".join(parts)


def layers_of(optimizer: torch.optim.Optimizer, model: Any) -> dict[str, Any]:
    """Name -> layer, of those whose weight the optimizer learns; names as without wrappers."""
    check_model(model)
    parameters = learned(optimizer)
    layers, weights = {}, {}
    for path, module in model.named_modules():
        if not (isinstance(module, Neuronwise) or type(module) in _KINDS or _is_conv1d(module)):
            continue
        name = _name(model, path)
        if id(module.weight) not in parameters:
            continue
        rule = getattr(module, "rule", None)
        if rule is not None and rule.gradient in ("preconditioned", "standardized"):
            raise ValueError(
                f"model: got the layer {name!r} with gradient={rule.gradient!r}, expected a layer "
                "that leaves the gradient as it is"
            )
        other = weights.setdefault(id(module.weight), name)
        if other != name:
            raise ValueError(
                f"model: got one weight in the layers {other!r} and {name!r}, expected one each; "
                "call one layer twice"
            )
        layers[name] = module
    if not layers:
        names = ", ".join([*(kind.__name__ for kind in _KINDS), "the Conv1D of transformers"])
        raise ValueError(
            f"optimizer: got none of the weights of the model's layers ({names}), expected some; "
            "make it of model.parameters()"
        )
    return layers


def layout(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The weight as [O, I, ...], and back."""
    if isinstance(layer, Neuronwise):
        return layer.neurons_first
    if _is_conv1d(layer):
        return torch.t
    if getattr(layer, "transposed", False):
        return lambda weight: swap_channels(weight, layer.groups)
    return lambda weight: weight


def _is_conv1d(module: nn.Module) -> bool:
    """Whether this is the Conv1D of transformers, which need not be installed."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def changed(pair: Pair, layer: Any, dtype: torch.dtype, change: Callable[[Pair], Pair]) -> Pair:
    """`change` of [O, I, ...] and [O, 1, ...], in the layer's own layout and dtypes before."""
    weight, bias = pair
    flat = layout(layer)(weight).to(dtype)
    flat_bias = None if bias is None else bias.to(dtype).reshape(-1, *[1] * (flat.ndim - 1))
    new = change(Pair(flat, flat_bias))
    result = layout(layer)(new.weight).to(weight.dtype)
    if result.stride() != weight.stride():
        # Fused optimizers take it for granted that a gradient lies as its parameter does.
        result = torch.empty_like(weight).copy_(result)
    return Pair(result, None if bias is None else new.bias.reshape(bias.shape).to(bias.dtype))
