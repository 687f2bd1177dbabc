"""Everything that a watched pass may change, put back; and nothing of the pass left behind.

A model stores what it computes in attributes of its own, in caches and lists that it holds, on
objects that it was given, in what its hooks close over. All that can be reached from the model and
its inputs is as before the pass; what the pass left elsewhere has no graph.
"""

import contextlib
import functools
import itertools
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

_CONTAINERS = (dict, list, set, deque)
#: Objects of these libraries are machinery: other threads may be at work on them.
_MACHINERY = frozenset(
    "torch threading _thread queue logging multiprocessing asyncio concurrent contextvars socket "
    "io weakref _weakrefset".split()
)
_NO_OBJECTS = (type, types.ModuleType, torch.Tensor, torch.Generator, str, bytes, int, float)
#: So many objects are looked at, and containers of so many entries.
_OBJECTS, _ENTRIES = 100_000, 10_000


@contextlib.contextmanager
def untouched(model: Any, *inputs: Any) -> Iterator[None]:
    """Put back whatever a forward pass may change: modes, buffers, attributes, random state."""
    restore: list[Callable[[], Any]] = []
    for thing in reachable((model, *inputs)):
        with contextlib.suppress(Exception):
            restore.extend(_how_to_restore(thing))
    part = model if isinstance(model, nn.Module) else nn.Module()
    buffers = [_remembered(buffer) for buffer in part.buffers() if _has_bytes(buffer)]
    # A forward pass that runs a backward pass adds to none.
    gradients = [(parameter, parameter.grad) for parameter in part.parameters()]
    arrays = itertools.chain(part.parameters(), part.buffers())
    devices = {array.device.index for array in arrays if array.device.type == "cuda"}
    numpy = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        # Whatever one of them raises, all the others are put back, in the order written here.
        with contextlib.ExitStack() as stack:
            for put_back in reversed(buffers):  # batch norm changes them without a new version
                stack.callback(put_back)
            for parameter, gradient in gradients:
                stack.callback(setattr, parameter, "grad", gradient)
            for put_back in reversed(restore):
                stack.callback(put_back)
            if numpy is not None:
                stack.callback(numpy.random.set_state, states[1])
            stack.callback(random.setstate, states[0])


def _remembered(buffer: torch.Tensor) -> Callable[[], None]:
    """What gives a buffer its numbers again, and its size, dtype and memory if it has others."""
    alias, value = buffer.detach(), buffer.detach().clone()
    storage = alias.untyped_storage()
    size = storage.nbytes()

    def put_back() -> None:
        with torch.no_grad():
            if storage.nbytes() != size:
                storage.resize_(size)
            if _place(buffer) != _place(alias):
                buffer.data = alias
            if not torch.equal(buffer, value):
                buffer.copy_(value)

    return put_back


def _place(buffer: torch.Tensor) -> tuple:
    """Where a buffer's numbers lie in memory, and as what."""
    where = buffer.untyped_storage()._cdata, buffer.storage_offset(), buffer.stride()
    return *where, buffer.shape, buffer.dtype


def _has_bytes(buffer: torch.Tensor) -> bool:
    return buffer.device.type != "meta" and buffer.layout == torch.strided


def reachable(roots: tuple, *, modules: bool = True) -> list[Any]:
    """All objects that the roots hold, and those that these hold: the nearest come first."""
    seen = {id(root) for root in roots}
    queue = list(roots)
    for thing in queue:
        if len(queue) > _OBJECTS:
            break
        children: list[Any] = []
        with contextlib.suppress(Exception):  # a proxy that is not bound, ...
            children.extend(_held_by(thing))
        for child in children:
            skipped = isinstance(child, nn.Module) and not modules
            if child is not None and not skipped and id(child) not in seen:
                seen.add(id(child))
                queue.append(child)
    return queue


def _held_by(thing: Any) -> Iterator[Any]:
    """What an object holds directly."""
    if isinstance(thing, (*_CONTAINERS, tuple, frozenset)):
        if len(thing) <= _ENTRIES:
            yield from list(thing.values() if isinstance(thing, dict) else thing)
    elif isinstance(thing, types.FunctionType):
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty one
                yield cell.cell_contents
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    for table in _attributes(thing):
        yield from list(table.values())
    if isinstance(thing, nn.Module):  # a cache that all instances share
        for kind in type(thing).__mro__:
            if kind.__module__.partition(".")[0] not in _MACHINERY:
                yield from (v for v in list(vars(kind).values()) if isinstance(v, _CONTAINERS))


def _attributes(thing: Any) -> list[dict[str, Any]]:
    """An object's attributes: its `__dict__`, and a copy of its slots."""
    if isinstance(thing, _NO_OBJECTS) or not _is_looked_into(thing):
        return []
    tables = []
    with contextlib.suppress(Exception):
        tables.append(vars(thing))
    slots = _slots(thing)
    return [*tables, slots] if slots else tables


def _is_looked_into(thing: Any) -> bool:
    library = str(type(thing).__module__)
    if isinstance(thing, nn.Module) or library.startswith("torch.distributions"):
        return True
    return library.partition(".")[0] not in _MACHINERY


def _slots(thing: Any) -> dict[str, Any]:
    found = {}
    for kind in type(thing).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else tuple(names):
            member = vars(kind).get(name)
            if isinstance(member, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not set
                    found[name] = member.__get__(thing)
    return found


def _how_to_restore(thing: Any) -> Iterator[Callable[[], Any]]:
    """What is to be called after the pass, so that the object is as it is now."""
    if isinstance(thing, _CONTAINERS):
        yield functools.partial(_refill, thing, _content(thing))
    elif isinstance(thing, torch.Generator):
        yield functools.partial(thing.set_state, thing.get_state())
    elif isinstance(thing, random.Random):
        yield functools.partial(thing.setstate, thing.getstate())
    elif "numpy" in sys.modules and isinstance(thing, sys.modules["numpy"].random.Generator):
        source = thing.bit_generator
        yield functools.partial(setattr, source, "state", source.state)
    if _attributes(thing):
        with contextlib.suppress(Exception):
            yield functools.partial(_refill, vars(thing), _content(vars(thing)))
        slots = _slots(thing)
        if slots:
            yield functools.partial(_reset_slots, thing, slots)


def _content(container: Any) -> list:
    return list(dict.items(container) if isinstance(container, dict) else container)


def _refill(container: Any, content: list) -> None:
    """Give a container the content that it had; only if it has another one."""
    now = _content(container)
    pairs = isinstance(container, dict)
    flat = [
        [each for entry in entries for each in entry] if pairs else entries
        for entries in (now, content)
    ]
    if len(flat[0]) == len(flat[1]) and all(a is b for a, b in zip(*flat, strict=True)):
        return
    if isinstance(container, dict):
        # Not by methods of a subclass, which may do more.
        kind: Any = OrderedDict if isinstance(container, OrderedDict) else dict
        kind.clear(container)
        for key, value in content:
            kind.__setitem__(container, key, value)
        return
    container.clear()
    (container.update if isinstance(container, set) else container.extend)(content)


def _reset_slots(thing: Any, before: dict[str, Any]) -> None:
    for name in _slots(thing).keys() - before.keys():
        object.__delattr__(thing, name)
    for name, value in before.items():
        object.__setattr__(thing, name, value)


def detach(tensor: torch.Tensor, *, requires_grad: bool = False) -> None:
    """Cut a tensor off its graph in place, for whoever holds it."""
    try:
        if tensor.grad_fn is not None:
            if tensor._is_view():  # which has no detach_
                alone = tensor.detach()
                vars(alone).update(vars(tensor))
                torch.utils.swap_tensors(tensor, alone)
            else:
                tensor.detach_()
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
    except RuntimeError:
        # One of a transformation that is over, or that somebody holds with a weak reference.
        return
