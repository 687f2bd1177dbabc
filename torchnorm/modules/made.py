"""Classes that are made for a module that is converted: its own, with ours before it.

So the module stays an instance of its class, with that class's methods and name. It is pickled as
one of its class that is to be made again.
"""

import functools
import types
from typing import Any


class Made:
    """The first base of a class that was made."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Tell the module's class nothing: whoever lists its own subclasses means written ones."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        how: Any
        how, args, *rest = super().__reduce_ex__(max(int(protocol), 2))
        if how.__name__ == "__newobj__" and args[0] is type(self):
            before, kind = _parts(type(self))
            return _new, (before, kind, *args[1:]), *rest
        return how, args, *rest


def _parts(kind: type) -> tuple[type, type]:
    """What a class was made of; of one that something was laid over, what was made below."""
    made: Any = next(each for each in kind.__mro__ if Made in each.__bases__)
    return made.__bases__[1:]


def _new(before: type, kind: type, *args: Any) -> Any:
    made = make(before, kind)
    return made.__new__(made, *args)  # type: ignore[call-overload]


@functools.cache
def make(before: type, kind: type) -> Any:
    """The class `kind`, with the class `before` before it; always the same one."""

    def fill(namespace: dict[str, Any]) -> None:
        for name in ("__module__", "__qualname__", "__doc__"):
            namespace[name] = getattr(kind, name)

    return types.new_class(kind.__name__, (Made, before, kind), exec_body=fill)
