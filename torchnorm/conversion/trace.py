"""Watch a forward pass: which operation consumed which tensor, and in which module.

Nothing of the model is changed by it, even where the pass breaks off. No tensor of the pass is held
(but single numbers), and the graph has no content: the watch of a large model needs no memory.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from torchnorm.conversion.elementwise import WITHOUT_GRADIENT, plain
from torchnorm.conversion.untouched import detach
from torchnorm.conversion.weights import Weights, saving


@dataclass(eq=False)
class Value:
    """A tensor in the state that one operation left it in; the tensor itself may be gone.

    Attributes:
        thing: the number of the tensor: of two states of one tensor it is the same.
        number: the tensor, if it has one entry.
        given: of a tensor that was there before the pass, whether it required a gradient.
    """

    thing: int
    shape: torch.Size
    requires_grad: bool
    floating: bool
    parameter: bool
    version: int
    reference: Callable[[], torch.Tensor | None]
    number: torch.Tensor | None = None
    given: bool | None = None
    maker: "Op | None" = None
    users: list["Op"] = field(default_factory=list)
    given_to: list["Call"] = field(default_factory=list)
    returned_by: list["Call"] = field(default_factory=list)
    is_output: bool = False
    read: bool = False  # whether a number of Python was made of it
    in_object: bool = False  # returned in an object of another kind: a distribution, a cache
    live: bool = False  # whether parameters act on it, with or without gradients being recorded

    @property
    def numel(self) -> int:
        """How many entries it has."""
        return self.shape.numel()


@dataclass(eq=False)
class Op:
    """One call of a function of PyTorch, under its name without the underscore of in-place forms.

    In its arguments, values stand for tensors. `func` is None where memory was written to through
    another tensor.
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
    spatial: bool = False  # whether it stands for a convolution
    saving: Any = None  # see `torchnorm.conversion.weights.saving`


class Tape(TorchFunctionMode):
    """Records every operation and module call while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = itertools.count()
        self.values: dict[int, Value] = {}
        self.history: list[Value] = []
        self.ops: list[Op] = []
        self.calls: dict[nn.Module, list[Call]] = {}
        self.stack: list[Call] = []
        self.weights = Weights()
        self.things = itertools.count()
        self.returned = ""  # the kind of what the model returned, if no tensor was found in it
        # Of what was there before the pass, by where they lie in memory, the bytes that the pass
        # has changed. (What it makes itself lies elsewhere.)
        self.made: set[int] = set()
        self.overwritten: dict[int, tuple[Any, Any]] = {}
        with torch.enable_grad():
            newest = torch.zeros((), requires_grad=True).clone().grad_fn
        self.start = -1 if newest is None else newest._sequence_nr()

    def value(self, tensor: torch.Tensor) -> Value:
        """The value that the tensor holds now."""
        known = self._known(tensor)
        if known is not None and known.version == _version(tensor):
            return known
        value = self._new(tensor, live=tensor.requires_grad)
        if known is None and not self._is_ours(tensor):
            value.given = tensor.requires_grad
        if known is not None:  # changed through another tensor with the same memory
            self._record(None, "changed through a view", (), {}, [known], [value])
        return value

    def _known(self, tensor: torch.Tensor) -> Value | None:
        """The last value of this very tensor, and not of one that is gone and had its id."""
        known = self.values.get(id(tensor))
        return known if known is not None and known.reference() is tensor else None

    def _new(self, tensor: torch.Tensor, *, live: bool = False) -> Value:
        before = self._known(tensor)
        value = Value(
            thing=next(self.things) if before is None else before.thing,
            shape=tensor.shape,
            requires_grad=tensor.requires_grad,
            floating=tensor.is_floating_point(),
            parameter=isinstance(tensor, nn.Parameter),
            version=_version(tensor),
            reference=TensorWeakRef(tensor),
            number=tensor if tensor.numel() == 1 else None,
            given=None if before is None else before.given,
            live=live,
        )
        self.values[id(tensor)] = value
        self.history.append(value)
        return value

    def _is_ours(self, tensor: torch.Tensor) -> bool:
        """Whether an operation of this pass has made the tensor, seen or not."""
        try:
            node = tensor.grad_fn
        except RuntimeError:  # PyTorch forbids to ask: a view without gradients, overwritten since
            return False
        return node is not None and node._sequence_nr() > self.start

    def _record(self, func, name, args, kwargs, ins, outs) -> None:
        in_place = name.endswith("_") and not name.endswith("__")
        name = plain(name[:-1] if in_place else name)
        stack = tuple(self.stack)
        op = Op(next(self.clock), func, name, in_place, args, kwargs, ins, outs, stack)
        self.ops.append(op)
        for value in dict.fromkeys(ins):
            value.users.append(op)
        live = any(value.live for value in ins) and name not in WITHOUT_GRADIENT
        for value in outs:
            value.maker = op
            value.live |= live and value.floating

    def _hollow(self, tree: Any, depth: int = 6) -> Any:
        """Arguments with values in place of tensors."""
        if isinstance(tree, torch.Tensor):
            return self._known(tree)
        if depth == 0 or type(tree) not in (tuple, list, dict):
            return tree
        if isinstance(tree, dict):
            return {key: self._hollow(branch, depth - 1) for key, branch in tree.items()}
        return type(tree)(self._hollow(branch, depth - 1) for branch in tree)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ins = [self.value(tensor) for tensor in tensors((args, kwargs))]
        arguments = self._hollow((args, kwargs))
        name = getattr(func, "__name__", type(func).__name__)
        taken = tensors((args, kwargs))
        if _may_overwrite(name, args, kwargs):
            self._save(taken)
        before = {id(tensor): (tensor, _version(tensor)) for tensor in taken}
        places = {place for tensor in taken if (place := _storage(tensor)) is not None}
        out = func(*args, **kwargs)
        changed = [tensor for tensor, version in before.values() if _version(tensor) != version]
        made = [tensor for tensor in tensors(out) if id(tensor) not in before]
        for value in ins if name in _READS else ():
            value.read = True
        if made or changed:
            outs = []
            for tensor in changed + made:
                outs.append(self._new(tensor))
                place = _storage(tensor)
                if place is not None and place not in places:
                    self.made.add(place)
            if name == "__get__":  # a property: x.T, x.data
                name = func.__self__.__name__
            self._record(func, name, arguments[0], arguments[1], ins, outs)
        self.weights.see(self, func, name, args, kwargs, tensors((args, kwargs)), ins, out)
        return out

    def _save(self, overwritten: Iterable[torch.Tensor]) -> None:
        for tensor in overwritten:
            place = _storage(tensor)
            if place is not None and place not in self.made and place not in self.overwritten:
                storage = tensor.untyped_storage()
                self.overwritten[place] = storage, storage.clone()

    def enter(self, module: nn.Module, name: str, args: tuple, kwargs: dict) -> None:
        """Note that a module is called, by the name that its caller has for it."""
        if self.stack:
            caller = self.stack[-1]
            for child, part in caller.module._modules.items():
                if part is module:
                    name = f"{caller.name}.{child}" if caller.name else child
        call = Call(
            module, name, next(self.clock), [self.value(t) for t in tensors((args, kwargs))]
        )
        first = args[0] if args else next(iter(tensors(kwargs)), None)
        call.saving = saving()
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
        if call.whole and any(
            v.thing == call.outs[0].thing and v not in call.outs for v in call.ins
        ):
            # It worked in place. Another object in its place shows whether the caller goes on with
            # what was returned, or with the tensor that it handed in.
            output = torch.Tensor.view_as(output, output)
        return output

    def put_back(self) -> None:
        """What was there before the pass, and was overwritten by it."""
        for storage, before in self.overwritten.values():
            if storage.nbytes() != before.nbytes():  # resized since
                storage.resize_(before.nbytes())
            storage.copy_(before)
        self.overwritten.clear()

    def forget(self) -> None:
        """Drop all that was recorded, and cut what others hold of it off its graph.

        Values, operations and calls refer to one another: without this they, and the graph, would
        stay until Python looks for cycles.
        """
        # The newest first: none is then needed by the graph of another. What is left is what others
        # hold, and what a weak reference points at cannot be taken off a graph.
        left = [(value.reference(), value.given) for value in reversed(self.history)]
        for value in self.history:
            del value.reference
        for tensor, given in left:
            if tensor is None:
                continue
            if given is not None:
                if tensor.is_leaf or self._is_ours(tensor):
                    detach(tensor, requires_grad=given)
            elif self._is_ours(tensor):
                detach(tensor)
        self.weights.forget()
        for value in self.history:
            value.maker = None
            for held in (value.users, value.given_to, value.returned_by):
                held.clear()
        for held in (self.values, self.history, self.ops, self.calls, self.stack):
            held.clear()


_READS = frozenset("item tolist numpy __bool__ __float__ __int__ __index__".split())


def _may_overwrite(name: str, args: tuple, kwargs: dict) -> bool:
    if name.startswith("__"):
        return name.startswith("__i") or name in ("__setitem__", "__set__")
    if name.startswith("embedding"):  # which may shorten what it looks up
        return kwargs.get("max_norm", args[3] if len(args) > 3 else None) is not None
    in_place = any(arg is True for arg in (*args, *kwargs.values()))  # relu(x, True)
    return in_place or name.endswith("_") or "out" in kwargs


def _storage(tensor: torch.Tensor) -> int | None:
    """Where a tensor lies in memory; None if nowhere."""
    if hasattr(tensor, "fake_mode"):
        return None
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # sparse, of a transformation, ...
        return None


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
