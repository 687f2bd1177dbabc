"""Which subclasses of a layer of Flax compute what it does."""

from collections.abc import Iterable
from inspect import getattr_static


def base_of(kind: type, bases: Iterable[type]) -> type | None:
    """The layer of Flax that a class is, or that it inherits the whole forward pass from."""
    return next((base for base in bases if kind is base or computes_as(kind, base)), None)


def computes_as(kind: type, base: type) -> bool:
    """Whether a class is a subclass that leaves its base's methods as they are.

    It may have others beside them, other defaults, and a constructor of its own.
    """
    if not issubclass(kind, base):
        return False
    fields = getattr(base, "__dataclass_fields__", {})
    names = {name for name in dir(base) if not name.startswith("__") and name not in fields}
    methods = {name for name in names if callable(getattr(base, name, None))} | {"__call__"}
    # (Not by getattr, which binds class methods anew.)
    return all(getattr_static(kind, name, None) is getattr_static(base, name) for name in methods)
