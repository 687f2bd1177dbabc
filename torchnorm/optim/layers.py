"""Which layers of a model an optimizer learns, and how their weights lie."""

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.modules.base import Neuronwise
from torchnorm.modules.hosting import PRODUCTS
from torchnorm.modules.recording import Recording
from torchnorm.modules.registered import Registered
from torchnorm.modules.registry import NAMES, base_of, is_conv1d
from torchnorm.operations.convolution import swap_channels

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


def parameters(layer: Any) -> Pair:
    """The layer's weight and bias, each None where it has none, or computes it from others."""
    names = getattr(layer, "parameter_names", ("weight", "bias"))
    return Pair(*(layer._parameters.get(name) for name in names))


def has(layer: Any, pair: Pair) -> bool:
    """Whether the layer's weight and bias are those of the pair, still."""
    now = parameters(layer)
    if hasattr(pair.weight, "device_mesh") and isinstance(now.weight, nn.Parameter):
        if not hasattr(now.weight, "device_mesh"):
            return True  # FSDP2 has put the whole ones there
    return now.weight is pair.weight and now.bias is pair.bias


def check_whole(module: Any) -> None:
    """Raise a ValueError where a wrapper has taken the parameters apart, or copies the module."""
    # By name: to import FSDP is to import all of torch.distributed.
    flat = any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__)
    if flat or any(hasattr(p, "_fsdp_flattened") for p in module._parameters.values()):
        raise ValueError(
            "model: got one in FullyShardedDataParallel, which flattens its parameters, expected "
            "one whose weights are matrices; shard it with torch.distributed.fsdp.fully_shard"
        )
    if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
        raise ValueError(
            "model: got DataParallel, whose copies of the model are others in each step, expected "
            "one that stays; use torch.nn.parallel.DistributedDataParallel"
        )


def recording(model: nn.Module) -> dict[str, Any]:
    """Name -> layer, of those that can record; raises where they do not fit together."""
    layers: dict[str, Any] = {}
    owners: dict[int, str] = {}
    for name, module in _candidates(model):
        if module.rule.gradient == "plain":
            continue
        if module.rule.gradient not in (None, "plain_with_statistics"):
            raise ValueError(
                f"model: got the layer {name!r} with gradient={module.rule.gradient!r}, expected "
                "'plain_with_statistics', the default; a layer that adapts the gradient itself "
                "goes with SGD alone"
            )
        for what, parameter in parameters(module)._asdict().items():
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


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and layer: modules, and parameters that modules multiply with."""
    for path, module in model.named_modules():
        check_whole(module)
        name = _name(model, path)
        if isinstance(module, Neuronwise):
            yield name, module
        for product in vars(module).get(PRODUCTS, {}).values():
            # A parametrized weight is that of its layer.
            of = name.partition(".parametrizations.")[0]
            yield ".".join(part for part in (of, product.suffix) if part), product


def warn_left_out(names: list[str], why: str) -> None:
    """Tell which layers have other parameters than a step would be right for."""
    if names:
        warnings.warn(
            f"model: got layers whose weight {why}, expected those that the optimizer was made "
            f"with: {', '.join(map(repr, names))}; they are stepped as if they were no layers of "
            "it: make the optimizer anew when their parameters are those that stay",
            stacklevel=3,
        )


def check_elsewhere(model: nn.Module, learned: set[int]) -> None:
    """Raise a ValueError for a layer outside of the model whose weight is among the parameters.

    It would be stepped as ever, and nobody would be told.
    """
    rest = learned - {id(parameter) for parameter in model.parameters()}
    if not rest:
        return
    # All that there is: a parameter does not know its layer. Seldom: most models have all of them.
    for each in gc.get_objects():
        # Of those that are made at this moment some have nothing yet.
        if issubclass(type(each), Recording) and "rule" in vars(each):
            weight, gradient = parameters(each).weight, each.rule.gradient
            if id(weight) in rest and gradient in (None, "plain_with_statistics"):
                raise ValueError(
                    f"optimizer: got the weight of a {type(each).__name__} that is not in the "
                    "model, expected none, or all that have layers in one model: "
                    "torch.nn.ModuleList([model, other])"
                )


def unwrapped(model: nn.Module) -> nn.Module:
    """What DDP, torch.compile and checkpointing have wrapped."""
    while True:
        check_whole(model)
        names = [name for name in model._modules if _is_wrapped(model, name)]
        if not names:
            return model
        model = model._modules[names[0]]  # type: ignore[assignment]


def _is_wrapped(module: nn.Module, name: str) -> bool:
    """Whether a wrapper has what it wraps under this name."""
    return name in _WRAPPED or (name == "module" and isinstance(module, _PARALLEL))


def _name(model: nn.Module, path: str) -> str:
    """The path without what DDP, torch.compile and checkpointing put into it."""
    parts: list[str] = []
    module: Any = model
    for part in path.split(".") if path else ():
        if not _is_wrapped(module, part):
            parts.append(part)
        module = module._modules[part]
    return ".".join(parts)


def layers_of(optimizer: torch.optim.Optimizer, model: Any) -> dict[str, Any]:
    """Name -> layer, of those whose weight the optimizer learns; names as without wrappers."""
    check_model(model)
    parameter_ids = learned(optimizer)
    layers, weights = {}, {}
    # Fused attention multiplies with what its layers hold, and does not call them.
    fused = [m for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    silent = {child for each in fused for child in each.children()}
    for path, module in model.named_modules():
        check_whole(module)
        if module in silent:
            continue
        # (Of what is registered only the layer itself knows what it computes.)
        if isinstance(module, Registered) or not (
            isinstance(module, Neuronwise) or base_of(type(module)) or is_conv1d(type(module))
        ):
            continue
        name = _name(model, path)
        weight = parameters(module).weight
        if weight is None or id(weight) not in parameter_ids:
            continue
        rule = getattr(module, "rule", None)
        if rule is not None and rule.gradient in ("preconditioned", "standardized"):
            raise ValueError(
                f"model: got the layer {name!r} with gradient={rule.gradient!r}, expected a layer "
                "that leaves the gradient as it is"
            )
        other = weights.setdefault(id(weight), name)
        if other != name:
            raise ValueError(
                f"model: got one weight in the layers {other!r} and {name!r}, expected one each; "
                "call one layer twice"
            )
        layers[name] = module
    if not layers:
        raise ValueError(
            f"optimizer: got none of the weights of the model's layers ({NAMES}), expected some; "
            "make it of model.parameters()"
        )
    return layers


def layout(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The weight as [O, I, ...]."""
    if isinstance(layer, Recording):
        return layer.neurons_first
    if is_conv1d(type(layer)):
        return torch.t
    if getattr(layer, "transposed", False):
        return lambda weight: swap_channels(weight, layer.groups)
    return lambda weight: weight


def back(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """From [O, I, ...] to the weight."""
    return layer.as_stored if isinstance(layer, Recording) else layout(layer)


def as_parameter(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A gradient that lies as its parameter does: fused optimizers take it for granted."""
    if grad.stride() == weight.stride():
        return grad
    return torch.empty_like(weight).copy_(grad)


def changed(pair: Pair, layer: Any, dtype: torch.dtype, change: Callable[[Pair], Pair]) -> Pair:
    """`change` of [O, I, ...] and [O, 1, ...], in the layer's own layout and dtypes before."""
    weight, bias = pair
    flat = layout(layer)(weight).to(dtype)
    flat_bias = None if bias is None else bias.to(dtype).reshape(-1, *[1] * (flat.ndim - 1))
    new = change(Pair(flat, flat_bias))
    result = as_parameter(back(layer)(new.weight).to(weight.dtype), weight)
    return Pair(result, None if bias is None else new.bias.reshape(bias.shape).to(bias.dtype))
