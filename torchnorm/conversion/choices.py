"""Which layers of a model can be converted, and why the others cannot."""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torchnorm import checks
from torchnorm.activations import DEFERRED, Gate, resolve_gate
from torchnorm.conversion.decisions import Decision, Direct, Left
from torchnorm.conversion.trace import Tape
from torchnorm.modules.base import Neuronwise
from torchnorm.modules.recording import Recording
from torchnorm.modules.registered import registered_as
from torchnorm.modules.registry import MARK
from torchnorm.recurrent.products import RecurrentProduct, Unfused
from torchnorm.recurrent.registry import KINDS as RECURRENT
from torchnorm.rule import Rule

ATTRIBUTES = ("gate", "rule", "process_group")
"""What a converted layer gets, besides the mark."""
_NOT_CALLED = "not called on example_input"
_ATTRIBUTE = "it has an attribute called"
_COMPUTED = "its weight is computed (parametrized, weight norm, pruned)"
_OURS = tuple(name for name in vars(Recording) if not name.startswith("__"))


def check_model(model: Any) -> None:
    """Raise a TypeError or ValueError for a model that cannot be converted as it is."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    wrappers = {
        "OptimizedModule": "before torch.compile",
        "DistributedDataParallel": "before wrapping it in DDP",
        "FullyShardedDataParallel": "before wrapping it in FSDP",
        "DataParallel": "before wrapping it in DataParallel",
    }
    for name, module in model.named_modules():
        where = (
            f"got {type(module).__name__} at {name!r}" if name else f"got {type(model).__name__}"
        )
        if MARK in vars(module):
            raise ValueError(
                f"model: {where}, converted already, expected a model of PyTorch; call "
                "torchnorm.revert(model) first"
            )
        kinds = {kind.__name__ for kind in type(module).__mro__}
        for wrapper in sorted(kinds & set(wrappers)):
            raise ValueError(
                f"model: {where}, expected the model itself; convert it {wrappers[wrapper]}"
            )
        if isinstance(module, torch.jit.ScriptModule) and not name:
            raise ValueError(
                f"model: {where}, expected an ordinary module; convert it before torch.jit"
            )
        arrays = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(isinstance(p, UninitializedParameter | UninitializedBuffer) for p in arrays):
            raise ValueError(
                f"model: {where}, whose parameters or buffers have no shape yet, expected "
                "initialized ones; run one batch through the model first"
            )


def check_skip(model: nn.Module, skip: Any) -> tuple:
    """What is to be skipped, as names, patterns and types."""
    skip = (skip,) if isinstance(skip, str | type) else tuple(skip)
    names = [name for name, _ in model.named_modules()]
    for entry in skip:
        if isinstance(entry, type) and issubclass(entry, nn.Module):
            continue
        if not isinstance(entry, str):
            raise TypeError(f"skip: got {entry!r}, expected a module's name, a pattern or a type")
        if not any(fnmatchcase(name, entry) for name in names):
            raise ValueError(
                f"skip: got {entry!r}, which matches no module, expected one that does"
            )
    return skip


def named_gates(
    layers: dict[str, nn.Module], gates: Mapping[str, Gate], skip: Collection[str]
) -> dict[str, Decision]:
    """What the user's patterns say of each layer not to skip; the first that matches counts."""
    for pattern, gate in gates.items():
        if not isinstance(pattern, str):
            raise TypeError(f"gates: got the key {pattern!r}, expected a layer's name or a pattern")
        if gate is DEFERRED:
            raise ValueError(
                f"gates[{pattern!r}]: got DEFERRED, expected an activation; with gates='auto' "
                "layers are deferred where it is needed"
            )
        try:
            resolve_gate(gate)
        except (TypeError, ValueError) as error:
            raise type(error)(f"gates[{pattern!r}]: {error}") from None
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(
                f"gates: got the pattern {pattern!r}, which matches no layer, expected one that "
                f"matches one of {', '.join(map(repr, list(layers)[:20]))}"
            )
    decisions: dict[str, Decision] = {}
    for name in [name for name in layers if name not in skip]:
        pattern = next((pattern for pattern in gates if fnmatchcase(name, pattern)), None)
        if pattern is None:
            decisions[name] = Left("not named in gates")
            continue
        reason = why_never(layers[name])
        if reason is not None:
            raise ValueError(
                f"gates: got {pattern!r} for the layer {name!r}, but {reason}; leave it out"
            )
        decisions[name] = Direct(gates[pattern], "named")
    return decisions


def skipped(model: nn.Module, name: str, skip: tuple) -> bool:
    """Whether the module or one that contains it is to be left alone."""
    parts = name.split(".") if name else []
    for end in range(len(parts) + 1):
        path = ".".join(parts[:end])
        module = model.get_submodule(path)
        for entry in skip:
            if isinstance(entry, str):
                if fnmatchcase(path, entry) and (path or not name or entry == ""):
                    return True
            elif isinstance(module, entry):
                return True
    return False


def weight_of(layer: nn.Module) -> Any:
    """The weight of a layer that may be converted."""
    registration = registered_as(type(layer))
    return layer._parameters["weight" if registration is None else registration.names[0]]


def why_never(module: nn.Module) -> str | None:
    """Why the rule cannot be given to a layer at all."""
    registration = registered_as(type(module))
    names = ("weight", "bias") if registration is None else registration.names
    weight = module._parameters.get(names[0])
    if weight is None:
        return _COMPUTED
    fake = hasattr(weight, "fake_mode")  # a plain one without data
    if not fake and (type(weight) is not nn.Parameter or type(weight.data) is not torch.Tensor):
        return f"its weight is a {type(weight).__name__}"
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"its weight has dtype {checks.dtype_name(weight)}"
    if registration is None and "bias" not in module._parameters:
        return "its bias is computed (parametrized, pruned)"
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "its forward was replaced"
    for name in (*ATTRIBUTES, *_OURS):
        if hasattr(module, name):
            return f"{_ATTRIBUTE} {name}"
    return None


def why_no_parameter(module: nn.Module, parameter: nn.Parameter) -> str | None:
    """Why a parameter that a module multiplies with cannot be given the rule."""
    if not parameter.requires_grad:
        return "frozen (requires_grad=False)"
    fake = hasattr(parameter, "fake_mode")  # a plain one without data
    kinds = type(parameter), type(parameter.data)
    if not fake and kinds != (nn.Parameter, torch.Tensor):
        return f"its weight is a {type(parameter).__name__}"
    if parameter.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"its weight has dtype {checks.dtype_name(parameter)}"
    if isinstance(module, torch.jit.ScriptModule):
        return "a scripted part"
    return None


def may_be_product(reason: str) -> bool:
    """Whether a layer that is left alone for this reason may still be multiplied with."""
    return reason in (_NOT_CALLED, _COMPUTED) or reason.startswith(_ATTRIBUTE)


def owners(model: nn.Module) -> dict[int, list[str]]:
    """Which modules have each parameter, by the parameter's id."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(name)
    return found


def why_not(name: str, module: nn.Module, owned: dict[int, list[str]]) -> str | None:
    """Why a layer is not converted unless it is named."""
    reason = why_never(module)
    if reason is not None:
        return reason
    weight = weight_of(module)
    if not weight.requires_grad:
        return "frozen (requires_grad=False)"
    return why_shared(name, weight, owned)


def why_shared(name: str, weight: nn.Parameter, owned: dict[int, list[str]]) -> str | None:
    """Why the weight of the module of this name cannot be one that others have, too."""
    others = [other for other in owned[id(weight)] if other != name]
    return f"its weight is shared with {others[0] or 'the model itself'}" if others else None


def why_no_cell(name: str, cell: nn.Module, owned: dict[int, list[str]]) -> str | None:
    """Why a recurrent layer is left alone, although such layers are to be converted."""
    weights = [p for p in cell._parameters.values() if p is not None and p.ndim > 1]
    if not any(weight.requires_grad for weight in weights):
        return "frozen (requires_grad=False)"
    return next((why for w in weights if (why := why_shared(name, w, owned)) is not None), None)


def why_not_as_called(tape: Tape | None, module: nn.Module, *, recorded: bool) -> str | None:
    """Why a layer is left alone after it was watched.

    Args:
        tape: the pass, if it was called in one.
        module: the layer.
        recorded: whether its statistics are, which add up over its calls.
    """
    if tape is None:
        return _NOT_CALLED
    calls = tape.calls[module]
    if len(calls) > 1 and not recorded:
        return f"called {len(calls)} times in one forward pass; name it in gates= to convert it"
    for parameter in module.parameters(recurse=False):
        value = tape.values.get(id(parameter))
        for op in [] if value is None else value.users:
            within = any(call in op.stack for call in calls)
            if not within and any(out.requires_grad for out in op.outs):
                which = "weight" if parameter is weight_of(module) else "bias"
                return f"its {which} is used outside of it, too"
    if not all(call.whole for call in calls):
        return "its output is not one tensor"
    return None


def records(rule: Rule) -> bool:
    """Whether layers with this rule record statistics."""
    return rule.gradient in (None, "plain", "plain_with_statistics")


def reported(model: nn.Module) -> list[str]:
    """The rows of a report: layers, and whatever else has a weight of two or more axes."""
    lists = nn.utils.parametrize.ParametrizationList
    return [
        name
        for name, module in model.named_modules()
        if not isinstance(module, lists | RecurrentProduct)
        and (
            isinstance(module, Neuronwise)
            or nn.utils.parametrize.is_parametrized(module)
            or any(p is not None and p.ndim > 1 for p in module._parameters.values())
        )
    ]


def why_no_layer(module: nn.Module) -> str | None:
    """Why no weight of a module is multiplied with, as far as its class says so."""
    if isinstance(module, Neuronwise | Unfused):
        return "a layer of torchnorm already"
    if isinstance(module, torch.jit.ScriptModule):
        return "a scripted part"
    if isinstance(module, nn.MultiheadAttention):
        return "its kernels are fused"
    if type(module) in RECURRENT:
        return "its kernels are fused; convert with recurrent=True"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "its kernels are fused"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "no dense or convolutional layer"
    return None
