"""Another normalizer in the place of a model's."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxnorm.nnx.modules import MARK, modules
from jaxnorm.nnx.normalizers.batch_renorm import BatchRenorm


def replace(
    model: nnx.Module,
    make: Callable[[int], nnx.Module],
    *,
    of: tuple[type[nnx.Module], ...] = (nnx.BatchNorm,),
    skip: Sequence[str] = (),
) -> list[str]:
    """Put another normalizer in the place of each of a model's, in place.

    What both have of one name and shape stays: the variables ``scale`` and ``bias`` are the same
    objects; so are the running statistics, and a `BatchRenorm` has the root of the variance. A
    variable that only the new one has starts as `make` made it, what only the old one had is gone.
    ``use_running_average`` stays what it was. A normalizer that stands in several places is
    replaced by one.

    Forward and backward are those of the new normalizer, so the model computes another function.
    Replace first, then `jaxnorm.nnx.convert`: the gate of the layer before is what the activation
    behind the new normalizer sees.

    Args:
        model: any module that contains normalizers; changed in place.
        make: makes one for so many channels:
            ``lambda channels: nnx.GroupNorm(channels, num_groups=8, rngs=rngs)``.
        of: which classes are replaced.
        skip: paths, or glob patterns of paths, of modules that stay.

    Returns:
        The paths of what was replaced.

    Raises:
        TypeError: for a model that is no module, or where `make` returns none.
        ValueError: nothing in the model is one of these classes, the model itself is one, or it is
            converted. Nothing is changed then, also where `make` raises.

    Transformations: none; before `nnx.split` and the optimizer.

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> import jaxnorm
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.relu)
        >>> jaxnorm.nnx.normalizers.replace(
        ...     model, lambda channels: nnx.GroupNorm(channels, num_groups=4, rngs=rngs))
        ['layers/1']
        >>> print(jaxnorm.nnx.convert(model, example_input=jnp.ones((2, 5, 5, 3))))
        layer     kind  gate  reason
        layers/0  Conv  relu  deferred to layers/1
        1 of 1 layer with a matrix is converted; Rule()
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a flax.nnx.Module")
    every = modules(model)
    if any(hasattr(module, MARK) for module, _ in every.values()):
        raise ValueError("model: got a converted one, expected to replace before convert")
    found = {
        name: (module, also)
        for name, (module, also) in every.items()
        if isinstance(module, of) and not any(fnmatchcase(name, pattern) for pattern in skip)
    }
    if not found or "" in found:
        wanted = ", ".join(kind.__name__ for kind in of)
        got = f"a {type(model).__name__} without one" if "" not in found else "one itself"
        raise ValueError(f"model: got {got}, expected a model that contains modules of {wanted}")
    made = {name: _made(module, make) for name, (module, _) in found.items()}
    for name, (_, also) in found.items():
        for place in (name, *also):
            _put(model, place.split("/"), made[name])
    return list(found)


def _made(old: Any, make: Callable[[int], nnx.Module]) -> nnx.Module:
    """The new one, with what it has in common with the old one."""
    new: Any = make(_channels(old))
    if not isinstance(new, nnx.Module):
        raise TypeError(f"make: got {type(new).__name__}, expected a flax.nnx.Module")
    for name, variable in vars(old).items():
        other = getattr(new, name, None)
        if not (isinstance(variable, nnx.Variable) and isinstance(other, nnx.Variable)):
            continue
        if variable.get_value().shape == other.get_value().shape:
            setattr(new, name, variable)
    if isinstance(new, BatchRenorm) and isinstance(getattr(old, "var", None), nnx.Variable):
        deviation: Any = vars(new)["std"]
        std = jnp.sqrt(old.var.get_value()) + new.epsilon
        deviation.set_value(std.astype(deviation.get_value().dtype))
    if hasattr(old, "use_running_average"):
        new.set_attributes(use_running_average=old.use_running_average, raise_if_not_found=False)
    return new


def _channels(module: Any) -> int:
    """How many channels a normalizer has."""
    if isinstance(module, nnx.GroupNorm):
        return module.num_groups * module.group_size
    return module.num_features


def _put(model: Any, path: list[str], new: nnx.Module) -> None:
    """Into the attribute, the item of a list or the entry of a dict that the path names."""
    *parents, last = path
    for key in parents:
        model = model[_key(model, key)] if _holds_items(model) else getattr(model, key)
    if _holds_items(model):
        model[_key(model, last)] = new
    else:
        setattr(model, last, new)


def _holds_items(node: Any) -> bool:
    return isinstance(node, dict | list | tuple | nnx.List | nnx.Dict)


def _key(node: Any, key: str) -> Any:
    """A key of a dict, or the number of an item."""
    return key if isinstance(node, dict | nnx.Dict) else int(key)
