"""Objects that JAX cannot see into: what they hold, and what a traced call must not leave on them.

A model may return one (a distribution that is no pytree), and may keep one to note things down on.
"""

import contextlib
import enum
import functools
import gc
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

#: What holds no array and needs no search.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, enum.Enum, np.dtype, np.generic)

#: So many objects are looked at: enough for what a model returns, not for a data set in it.
_MOST = 10_000


def is_array(leaf: Any) -> bool:
    """Whether it is an array or has the shape of one, and is no flag."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, np.bool_)


def is_opaque(leaf: Any) -> bool:
    """Whether a leaf of a tree may hold arrays that JAX does not see."""
    return not is_array(leaf) and not isinstance(leaf, _PLAIN)


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of what a model returns, whose iterators are not run."""
    return jax.tree.leaves(tree, is_leaf=lambda each: isinstance(each, Iterator))


def arrays_in(holder: Any) -> list[Any]:
    """The arrays that an object holds, as far as that can be seen without running its code."""
    return [each for each in _walk(holder) if isinstance(each, jax.Array)]


def settings_in(function: Any) -> tuple[Any, ...]:
    """What a function and all that it holds may decide by: a key, to see when it was replaced."""
    named: list[Any] = [function]
    if isinstance(function, types.FunctionType):
        named += inspect.getclosurevars(function).globals.values()
    found = []
    for each in _walk(named, plain=True):
        if isinstance(each, str | bool):
            found.append(each)
        elif isinstance(each, types.ModuleType) or is_array(each):
            continue
        elif callable(each):
            found.append(_Identity(each))
    return tuple(found)


class _Identity:
    """An object as a key: equal to itself only."""

    def __init__(self, each: Any) -> None:
        self.object = each

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Identity) and self.object is other.object

    def __hash__(self) -> int:
        return id(self.object)


@contextlib.contextmanager
def without_leaks(*holders: Any) -> Iterator[None]:
    """Take traced values off the objects that these hold when the block is over."""
    before = [(each, _content(each)) for holder in holders for each in _walk(holder)]
    before = [(each, content) for each, content in before if content is not None]
    try:
        yield
    finally:
        for each, old in before:
            new = _content(each)
            if new is not None and _leaked(old, new):
                _restore(each, old)


def _walk(start: Any, *, plain: bool = False) -> Iterator[Any]:
    """An object and all that it holds; with `plain` what holds nothing itself, too."""
    seen: dict[int, Any] = {}
    waiting = [start]
    for _ in range(_MOST):
        if not waiting:
            return
        each = waiting.pop()
        if isinstance(each, (*_PLAIN, types.ModuleType)):
            if plain:
                yield each
        elif id(each) not in seen:
            seen[id(each)] = each
            yield each
            if not is_array(each):
                waiting.extend(_held(each))


def _held(holder: Any) -> list[Any]:
    """What an object holds, one level deep."""
    if isinstance(holder, Mapping):
        return list(holder.values())
    if isinstance(holder, list | tuple | set | frozenset):
        return list(holder)
    if isinstance(holder, functools.partial):
        return [holder.func, *holder.args, *holder.keywords.values()]
    if isinstance(holder, types.MethodType):
        return [holder.__self__]
    if isinstance(holder, types.GeneratorType):
        return [] if holder.gi_frame is None else list(holder.gi_frame.f_locals.values())
    if isinstance(holder, Iterator):
        return gc.get_referents(holder)
    held = list(_attributes(holder).values())
    if isinstance(holder, types.FunctionType):
        held += holder.__defaults__ or ()
        held += (holder.__kwdefaults__ or {}).values()
        held += (cell.cell_contents for cell in holder.__closure__ or () if _filled(cell))
    for kind in type(holder).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            descriptor = vars(kind).get(name)
            if isinstance(descriptor, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):
                    held.append(descriptor.__get__(holder))
    return held


def _attributes(holder: Any) -> dict[str, Any]:
    found = getattr(holder, "__dict__", None)
    return found if type(found) is dict else {}


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a name that is not bound yet
        return False


def _content(holder: Any) -> Any:
    """A copy of what can be changed in an object."""
    if type(holder) in (dict, list, set):
        return holder.copy()
    return dict(_attributes(holder)) or None


def _leaked(old: Any, new: Any) -> bool:
    """Whether a traced value is there that was not before."""
    known = set(map(id, old.values() if isinstance(old, dict) else old))
    fresh = [v for v in (new.values() if isinstance(new, dict) else new) if id(v) not in known]
    return any(isinstance(array, Tracer) for array in arrays_in(fresh))


def _restore(holder: Any, content: Any) -> None:
    target = holder if type(holder) in (dict, list, set) else vars(holder)
    target.clear()
    target.extend(content) if isinstance(target, list) else target.update(content)
