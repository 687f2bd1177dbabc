"""Watch a forward pass: which operation consumed which tensor, and in which module.

Nothing of the model is changed by it, even where the pass breaks off.
"""

import contextlib
import copy
import dataclasses
import itertools
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@dataclass(eq=False)
class Value:
    """A tensor in the state that one operation left it in."""

    tensor: torch.Tensor
    version: int
    maker: "Op | None"
    users: list["Op"] = field(default_factory=list)
    given_to: list["Call"] = field(default_factory=list)
    returned_by: list["Call"] = field(default_factory=list)
    is_output: bool = False
    live: bool = False  # whether parameters act on it, with or without gradients being recorded

    @property
    def shape(self) -> torch.Size:
        """The tensor's."""
        return self.tensor.shape


@dataclass(eq=False)
class Op:
    """One call of a function of PyTorch, under its name without the underscore of in-place forms.

    `func` is None where memory was written to through another tensor.
    """

    index: int
    func: Any
    name: str
    in_place: bool
    args: tuple
    kwargs: dict
    ins: list[Value]
    outs: list[Value]
    stack: tuple["Call", ...]


@dataclass(eq=False)
class Call:
    """One call of a module; start and end on the clock that `Op.index` is on."""

    module: nn.Module
    name: str
    start: int
    ins: list[Value]
    end: int = -1
    outs: list[Value] = field(default_factory=list)
    whole: bool = False  # whether the output is one tensor and nothing else
    first: Value | None = None  # the first argument, if it is a tensor


class Tape(TorchFunctionMode):
    """Records every operation and module call while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = itertools.count()
        self.values: dict[int, Value] = {}
        self.ops: list[Op] = []
        self.calls: dict[nn.Module, list[Call]] = {}
        self.stack: list[Call] = []

    def value(self, tensor: torch.Tensor) -> Value:
        """The value that the tensor holds now."""
        known = self.values.get(id(tensor))
        version = _version(tensor)
        if known is not None and known.version == version:
            return known
        value = Value(tensor, version, None, live=tensor.requires_grad)
        if known is not None:  # changed through another tensor with the same memory
            self._record(None, "changed through a view", (), {}, [known], [value])
        self.values[id(tensor)] = value
        return value

    def _record(self, func, name, args, kwargs, ins, outs) -> None:
        in_place = name.endswith("_") and not name.endswith("__")
        name = name[:-1] if in_place else name
        stack = tuple(self.stack)
        op = Op(next(self.clock), func, name, in_place, args, kwargs, ins, outs, stack)
        self.ops.append(op)
        for value in dict.fromkeys(ins):
            value.users.append(op)
        live = any(value.live for value in ins) and name not in ("detach", "data")
        for value in outs:
            value.maker = op
            value.live |= live and value.tensor.is_floating_point()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ins = [self.value(tensor) for tensor in tensors((args, kwargs))]
        out = func(*args, **kwargs)
        given = {id(value.tensor) for value in ins}
        changed = [v.tensor for v in dict.fromkeys(ins) if _version(v.tensor) != v.version]
        made = [tensor for tensor in tensors(out) if id(tensor) not in given]
        if made or changed:
            outs = []
            for tensor in changed + made:
                self.values[id(tensor)] = Value(tensor, _version(tensor), None)
                outs.append(self.values[id(tensor)])
            name = getattr(func, "__name__", type(func).__name__)
            if name == "__get__":  # a property: x.T, x.data
                name = func.__self__.__name__
            self._record(func, name, args, kwargs, ins, outs)
        return out

    def enter(self, module: nn.Module, name: str, args: tuple, kwargs: dict) -> None:
        """Note that a module is called."""
        call = Call(
            module, name, next(self.clock), [self.value(t) for t in tensors((args, kwargs))]
        )
        first = args[0] if args else next(iter(tensors(kwargs)), None)
        call.first = self.value(first) if isinstance(first, torch.Tensor) else None
        self.calls.setdefault(module, []).append(call)
        self.stack.append(call)
        for value in dict.fromkeys(call.ins):
            value.given_to.append(call)

    def leave(self, output: Any) -> Any:
        """Note that a module has returned; returns the output to use in its place."""
        call = self.stack.pop()
        call.end = next(self.clock)
        call.outs = [self.value(tensor) for tensor in tensors(output)]
        call.whole = isinstance(output, torch.Tensor)
        for value in dict.fromkeys(call.outs):
            value.returned_by.append(call)
        if call.whole and any(v.tensor is output and v not in call.outs for v in call.ins):
            # It worked in place. Another object in its place shows whether the caller goes on with
            # what was returned, or with the tensor that it handed in.
            output = torch.Tensor.view_as(output, output)
        return output


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def tensors(tree: Any, depth: int = 6) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if depth == 0 or isinstance(tree, str):
        return []
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = dataclasses.fields(tree)
        tree = [getattr(tree, entry.name, None) for entry in fields]
    elif not isinstance(tree, list | tuple):
        return []
    return [tensor for branch in tree for tensor in tensors(branch, depth - 1)]


def arguments_of(model: nn.Module, example: Any) -> tuple[tuple, dict]:
    """The positional and keyword arguments of an example; its own if the model has one."""
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


def watch(model: nn.Module, layers: list[nn.Module], args: tuple, kwargs: dict) -> list[Tape]:
    """One pass in train mode, and one in eval mode if that fails or leaves a layer out."""
    tapes: list[Tape] = []
    for mode in (True, False):
        if tapes and all(layer in tapes[0].calls for layer in layers):
            break
        with untouched(model):
            model.train(mode)
            try:
                tapes.append(_record_pass(model, args, kwargs))
            except Exception as error:
                if not mode and not tapes:
                    shapes = [tuple(tensor.shape) for tensor in tensors((args, kwargs))]
                    raise ValueError(
                        f"example_input: got tensors of shapes {shapes}, expected an input that "
                        f"{type(model).__name__} runs on, but it raised {type(error).__name__}: "
                        f"{error}; pass a batch as in training"
                    ) from error
    return tapes


def _record_pass(model: nn.Module, args: tuple, kwargs: dict) -> Tape:
    tape = Tape()
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            before = module.register_forward_pre_hook(
                lambda module, args, kwargs, name=name: tape.enter(module, name, args, kwargs),
                prepend=True,
                with_kwargs=True,
            )
            # First, as the hooks of a converted model: what those of the user do comes after it.
            after = module.register_forward_hook(
                lambda module, args, output: tape.leave(output), prepend=True
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        with torch.enable_grad(), tape:
            output = model(*args, **kwargs)
    for tensor in tensors(output):
        tape.value(tensor).is_output = True
    return tape


_TABLES = (dict, OrderedDict, list, set)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back whatever a forward pass may change: modes, buffers, attributes, random state."""
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    # What they hold too: parameters, buffers, hooks (some models install theirs when first called).
    tables = [
        [(table, copy.copy(table)) for table in vars(module).values() if type(table) in _TABLES]
        for module in modules
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    arrays = itertools.chain(model.parameters(), model.buffers())
    devices = {array.device.index for array in arrays if array.device.type == "cuda"}
    numpy = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])
        for module, before, held_before in zip(modules, attributes, tables, strict=True):
            now = vars(module)
            for name in [name for name in now if name not in before]:
                del now[name]
            now.update(before)
            for table, content in held_before:
                table.clear()
                (table.extend if isinstance(table, list) else table.update)(content)
        with torch.no_grad():
            for buffer, value in buffers:  # batch norm changes them without a new version
                if buffer.device.type != "meta" and not torch.equal(buffer, value):
                    buffer.copy_(value)
