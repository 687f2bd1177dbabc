"""A whole model at once: `convert`, and `revert`, which takes it back."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from torchnorm import checks
from torchnorm.activations import DEFERRED, resolve_gate
from torchnorm.conversion.choices import (
    ATTRIBUTES,
    MARK,
    called_oddly,
    check_model,
    check_skip,
    impossible,
    no_layer,
    owners,
    skipped,
    unfit,
    weighty,
)
from torchnorm.conversion.report import Report, Row
from torchnorm.conversion.search import Direct, Factor, Seen, follow
from torchnorm.conversion.trace import tensors, untouched, watch
from torchnorm.conversion.wiring import (
    HOOKS,
    Afresh,
    Box,
    Factors,
    Seat,
    TakeFactor,
    TakeHandle,
    TellInput,
    TellOutput,
)
from torchnorm.modules.registry import NAMES, is_layer, ours
from torchnorm.rule import Rule

_ADDED = (*ATTRIBUTES, MARK)


def convert(
    model: nn.Module,
    example_input: Any = None,
    gates: Any = "auto",
    skip: Any = (),
    rule: Rule = Rule(),
    process_group: Any = None,
) -> Report:
    """Give the neuron-wise rule to every dense and convolutional layer of a model, in place.

    Forward (exact):      the model's own, to the last bit
    Backward (default):   the model's own; its layers record for `optim.in_neuron_coordinates`
    Backward (modified):  with ``Rule(gradient="preconditioned")``: of each converted layer the
                          weight and bias gradient by the rule; all other gradients are true

    A layer is converted by changing its class (`torch.nn.Linear` -> `torchnorm.Linear`): the
    parameters stay the same objects, and names, hooks, device, dtype and mode stay, so optimizers
    and checkpoints go on. Convert before torch.compile and before DDP.

    With ``gates="auto"`` one forward pass on `example_input` is watched, in train mode with
    gradients on (in eval mode if that fails, and for layers that train mode did not call), and each
    layer's output is followed to what consumes it:

    - an elementwise activation, as a module, a function or written out, behind changes of layout,
      casts and dropout: the gate is its name, the module itself, or the recorded operations;
    - a normalization or a sum and then an activation (conv-BN-ReLU, residual blocks): the layer is
      told at run time what the activation sees, by a hook on the module that returns or receives it
      (see `tell_gate`); where no module does, the gate is None and the row is `unresolved`;
    - a gated unit of two layers (SwiGLU): each is told the other's value; of one layer (GLU, z in
      chunks), or pooling before the activation: a `JointGate` (a pooled sample counts as much as it
      reaches the activation). Pooling behind the activation changes nothing;
    - anything else, attention, a residual sum, another layer, a loss, the output: None, so the
      layer's own, uniformly weighted moments.

    Left alone, with the reason in the report: layers that were never called or more than once,
    whose weight is shared, computed (parametrized, pruned), frozen (unfreeze before converting) or
    of another type, that have a forward of their own, and whatever is no such layer (embeddings,
    recurrent layers, fused attention).

    Args:
        model: any module; changed in place.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments of the model,
            as in training (two samples or more if there is a BatchNorm). None: `model.dummy_inputs`
            where the model has them (transformers). Not used if `gates` is a dict.
        gates: ``"auto"``, or ``{pattern: gate}`` with glob patterns of layer names, of which the
            first match counts; a layer that is named so is converted even if it is called twice,
            shared or frozen, and the others are left alone. Nothing is watched then.
        skip: names, glob patterns or types of modules; they and all below them are left alone.
        rule: see `Rule`.
        process_group: as in `Linear`.

    Returns:
        A `Report`, which prints as a table.

    Raises:
        TypeError: for a model, rule, gate or skip of another type.
        ValueError: for a model without such a layer, that is converted already, compiled, scripted,
            wrapped or lazy; an example that the model does not take, or none; a pattern that
            matches nothing. Nothing is changed then.

    Behavior: parameters, buffers, modes, gradients, hooks and random state are as before the
    watched pass, which keeps every intermediate tensor in memory and runs the model's own hooks;
    only parameters that the forward pass itself changes in place (nn.Embedding with max_norm) stay
    changed. Numbers in an activation that is written out are those of the watched pass.
    What a layer meets is decided once: a model whose forward pass branches has the gates of the
    branch that was watched. A fused inference path of PyTorch that calls no module
    (nn.TransformerEncoderLayer) goes on as it was. A layer whose activation is deferred and not
    reached (a part of the model was exchanged, a reentrant checkpoint holds one without the other)
    has its own, uniformly weighted moments. Hooks on a module see what they saw before the
    conversion; global ones (register_module_forward_hook) run earlier, so that of an deferred layer
    they see the pair (z, handle). A model that is converted already is refused.

    Transformations: deepcopy, pickle, state_dict, torch.func.functional_call, torch.compile,
    checkpointing, autocast and DDP work on the converted model; nn.DataParallel, whose threads
    would share the hooks, does not, nor do torch.jit.trace and torch.fx.symbolic_trace (`revert` a
    copy for them). A checkpoint with use_reentrant=False may part a layer from its activation, if
    the module that tells it does nothing else in that pass.

    Example:
        >>> import torch, torchnorm
        >>> from torch import nn
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> print(torchnorm.convert(model, torch.randn(2, 3, 8, 8)))
        layer  kind    gate  how
        0      Conv2d  relu  deferred to 1
        4      Linear  None  no activation follows: the output
        2 layers converted (1 deferred, 0 unresolved), 0 left alone; Rule()
        >>> model[0]
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), gate=DEFERRED, rule=Rule())
        >>> torchnorm.revert(model)
        >>> model[0]
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    checks.check_rule(rule)
    check_model(model)
    skip = check_skip(model, skip)
    candidates = {name: m for name, m in model.named_modules() if ours(type(m)) is not None}
    if not candidates:
        raise ValueError(
            f"model: got {type(model).__name__} without a layer to convert, expected at least one "
            f"of {NAMES}, itself and not a subclass"
        )
    left = {name: "skipped" for name in candidates if skipped(model, name, skip)}
    if isinstance(gates, Mapping):
        findings = _named(candidates, gates, left)
    elif isinstance(gates, str) and gates == "auto":
        args, kwargs = _arguments(model, example_input)
        owned = owners(model)
        left |= {
            name: reason
            for name, module in candidates.items()
            if name not in left and (reason := unfit(name, module, owned)) is not None
        }
        wanted = {name: module for name, module in candidates.items() if name not in left}
        findings = _watched(model, wanted, left, args, kwargs)
    else:
        raise TypeError(f"gates: got {gates!r}, expected 'auto' or a dict {{pattern: gate}}")
    _apply(model, findings, rule, process_group)
    rows = [_row(model, name, findings.get(name), left.get(name)) for name in weighty(model)]
    return Report(tuple(rows), rule)


def revert(model: nn.Module) -> None:
    """Take `convert` back: PyTorch's classes, and no hook or attribute of ours.

    Forward, backward:    PyTorch's

    Args:
        model: a converted model (or a copy of one); changed in place. Parameters stay as trained.

    Raises:
        TypeError: for a model that is no module.
        ValueError: for one that is not converted.

    Behavior: layers of torchnorm that the user made are left alone.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> _ = torchnorm.convert(model, torch.ones(2, 3))
        >>> torchnorm.revert(model)
        >>> model[0]
        Linear(in_features=3, out_features=4, bias=True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    converted = [module for module in model.modules() if MARK in vars(module)]
    hooked = any(
        isinstance(hook, HOOKS)  # all that is left where the parts were taken back one by one
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    if not converted and not hooked:
        raise ValueError(
            f"model: got {type(model).__name__} without a converted layer, expected a model that "
            "torchnorm.convert has converted"
        )
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, HOOKS)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    for module in converted:
        module.__class__ = vars(module)[MARK]
        for name in _ADDED:
            del vars(module)[name]
        module._modules.pop("neuron_stats", None)


def _named(
    candidates: dict[str, nn.Module], gates: Mapping, left: dict[str, str]
) -> dict[str, Any]:
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
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(
                f"gates: got the pattern {pattern!r}, which matches no layer, expected one that "
                f"matches one of {', '.join(map(repr, list(candidates)[:20]))}"
            )
    findings = {}
    for name, module in candidates.items():
        pattern = next((p for p in gates if fnmatchcase(name, p)), None)
        if pattern is None:
            left.setdefault(name, "not named in gates")
        elif name not in left:
            reason = impossible(module)
            if reason is not None:
                raise ValueError(
                    f"gates: got {pattern!r} for the layer {name!r}, but {reason}; leave it out"
                )
            findings[name] = Direct(gates[pattern], "named")
    return findings


def _arguments(model: nn.Module, example: Any) -> tuple[tuple, dict]:
    if example is None:
        example = getattr(model, "dummy_inputs", None)
        if not isinstance(example, Mapping):
            raise ValueError(
                "example_input: got None, expected an input to watch the model with: a tensor, a "
                "tuple of positional or a dict of keyword arguments; or name the gates in gates="
            )
        device = next(model.parameters()).device
        example = {
            k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in example.items()
        }
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example) if isinstance(example, tuple | list) else (example,), {}


def _watched(
    model: nn.Module, wanted: dict[str, nn.Module], left: dict[str, str], args: tuple, kwargs: dict
) -> dict[str, Any]:
    """What was found for each layer that was called once; the others go to `left`."""
    with untouched(model):
        model.train()
        try:
            tapes = [watch(model, args, kwargs)]
        except Exception:
            tapes = []
    missed = not tapes or any(module not in tapes[0].calls for module in wanted.values())
    if missed:
        with untouched(model):
            model.eval()
            try:
                tapes.append(watch(model, args, kwargs))
            except Exception as error:
                if not tapes:
                    shapes = [tuple(tensor.shape) for tensor in tensors((args, kwargs))]
                    raise ValueError(
                        f"example_input: got tensors of shapes {shapes}, expected an input that "
                        f"{type(model).__name__} runs on, but it raised {type(error).__name__}: "
                        f"{error}; pass a batch as in training"
                    ) from error
    holds = {parent for parent in model.modules() if any(is_layer(m) for m in parent.modules())}
    holds |= {m for m in model.modules() if any(p.ndim > 1 for p in m.parameters())}
    findings: dict[str, Any] = {}
    factors: list[tuple[Factor, str]] = []
    for name, module in wanted.items():
        tape = next((tape for tape in tapes if module in tape.calls), None)
        reason = called_oddly(tape, module)
        if reason is not None or tape is None:
            left[name] = reason or "not called in the watched pass"
            continue
        found = follow(tape, tape.calls[module][0], lambda m: m not in holds)
        findings[name] = found
        if isinstance(found, Factor):
            factors.append((found, name))
    for found, name in factors:
        findings[name] = _partner(found, name, factors) or found.fallback
    return findings


def _partner(
    found: Factor, name: str, factors: list[tuple[Factor, str]]
) -> tuple[Factor, Factor, str] | None:
    """The other layer of a gated unit: (this one, the other, its name)."""
    others = [
        (other, other_name)
        for other, other_name in factors
        if other.product is found.product and other_name != name
    ]
    if len(others) != 1:
        return None
    other, other_name = others[0]
    fits = other.operand is not found.operand
    fits &= (other.shape, other.layout) == (found.shape, found.layout)
    return (found, other, other_name) if fits else None


def _apply(model: nn.Module, findings: dict[str, Any], rule: Rule, process_group: Any) -> None:
    boxes: dict[Any, Any] = {}
    for name, found in findings.items():
        module = model.get_submodule(name)
        gate = found.gate if isinstance(found, Direct) else DEFERRED
        added = (gate, rule, process_group, type(module))
        kind = ours(type(module))
        assert kind is not None
        vars(module).update(zip(_ADDED, added, strict=True))
        module.__class__ = kind
        if isinstance(found, Seen):
            box = boxes.get((found.module.module, found.side))
            if box is None:
                box = boxes[found.module.module, found.side] = Box()
                if found.side == "input":
                    found.module.module.register_forward_pre_hook(
                        TellInput(box), prepend=True, with_kwargs=True
                    )
                else:
                    found.module.module.register_forward_hook(TellOutput(box), prepend=True)
            box.seats.append(Seat(found.gate, found.transport, found.calls))
            _hook_first(module, TakeHandle(box, len(box.seats) - 1))
        elif isinstance(found, tuple):
            own, other, other_name = found
            key = (own.product, min(name, other_name))
            first = name == min(name, other_name)
            if key not in boxes:
                pair = (own.gate, other.gate) if first else (other.gate, own.gate)
                # (A hook of the user may give one of them something else.)
                hooked = any(m._forward_pre_hooks for m in (module, other.layer.module))
                same = own.layer.first is other.layer.first and not hooked
                boxes[key] = Factors(pair, same)
            _hook_first(module, TakeFactor(boxes[key], 0 if first else 1))
    if boxes:
        model.register_forward_pre_hook(Afresh(list(boxes.values())), prepend=True)


def _hook_first(module: nn.Module, hook: Any) -> None:
    """Before the model's own hooks, which expect what PyTorch returns."""
    module.register_forward_hook(hook, prepend=True)


def _row(model: nn.Module, name: str, found: Any, reason: str | None) -> Row:
    module = model.get_submodule(name)
    kind = vars(module).get(MARK, type(module)).__name__
    if isinstance(found, Direct):
        return Row(name, kind, found.gate, found.how, unresolved=found.unresolved)
    if isinstance(found, Seen):
        return Row(name, kind, found.gate, found.how, deferred=True)
    if isinstance(found, tuple):
        return Row(name, kind, found[0].gate, f"gated with {found[2]}", deferred=True)
    if reason is None:
        reason = no_layer(module)
    return Row(name, kind, None, reason, converted=False)
