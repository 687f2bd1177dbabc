"""Another normalizer in the place of a model's."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

#: What counts as a normalizer of PyTorch where nothing else is said.
BATCH_NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)


def replace(
    model: nn.Module,
    make: Callable[[int], nn.Module],
    *,
    of: tuple[type[nn.Module], ...] = BATCH_NORMS,
    skip: Sequence[str] = (),
) -> list[str]:
    """Put another normalizer in the place of each of a model's, in place.

    What both have of one name and shape stays: the parameters ``weight`` and ``bias`` are the same
    objects, so that an optimizer goes on with them; buffers (running statistics) are copied. So do
    device, dtype and train or eval mode. A parameter that only the new one has starts as `make`
    made it, what only the old one had is gone. A normalizer that stands in several places is
    replaced by one.

    Forward and backward are those of the new normalizer, so the model computes another function.
    Replace first, then `torchnorm.convert`: the gate of the layer before is what the activation
    behind the new normalizer sees. (A converted model looks its modules up by name, so replacing
    afterwards works too.)

    Args:
        model: any module that contains normalizers; changed in place.
        make: makes one for so many channels: ``lambda channels: nn.GroupNorm(8, channels)``.
        of: which classes are replaced. By default PyTorch's BatchNorm in all ranks.
        skip: names, or glob patterns of names, of modules that stay.

    Returns:
        The names of what was replaced.

    Raises:
        TypeError: for a model that is no module, or where `make` returns none.
        ValueError: nothing in the model is one of these classes, or the model itself is one.
            Nothing is changed then, also where `make` raises.

    Transformations: none; before torch.compile, DDP and the optimizer, if parameters come or go.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import torchnorm
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> torchnorm.normalizers.replace(model, lambda channels: nn.GroupNorm(4, channels))
        ['1']
        >>> print(torchnorm.convert(model, torch.ones(2, 3, 5, 5)))
        layer  kind    gate  reason
        0      Conv2d  relu  deferred to 1
        1 of 1 layer with a matrix is converted; Rule()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, of) and not any(fnmatchcase(name, pattern) for pattern in skip)
    }
    if not found or "" in found:
        wanted = ", ".join(kind.__name__ for kind in of)
        got = f"a {type(model).__name__} without one" if "" not in found else "one itself"
        raise ValueError(f"model: got {got}, expected a model that contains modules of {wanted}")
    made = {id(module): _made(module, make) for module in found.values()}
    for name, module in found.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made[id(module)])
    return list(found)


def _made(old: nn.Module, make: Callable[[int], nn.Module]) -> nn.Module:
    """The new one, with what it has in common with the old one."""
    new: Any = make(_channels(old))
    if not isinstance(new, nn.Module):
        raise TypeError(f"make: got {type(new).__name__}, expected a torch.nn.Module")
    tensors = [*old.parameters(recurse=False), *old.buffers(recurse=False)]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if floating:
        new.to(floating[0].device, floating[0].dtype)
    new.train(old.training)
    parameters, buffers = dict(new.named_parameters()), dict(new.named_buffers())
    for name, parameter in old.named_parameters(recurse=False):
        if name in parameters and parameters[name].shape == parameter.shape:
            setattr(new, name, parameter)
    with torch.no_grad():
        for name, buffer in old.named_buffers(recurse=False):
            if name in buffers and buffers[name].shape == buffer.shape:
                buffers[name].copy_(buffer)
    return new


def _channels(module: Any) -> int:
    """How many channels a normalizer has."""
    if isinstance(module, _NormBase):
        return module.num_features
    for name in ("num_features", "num_channels"):
        if hasattr(module, name):
            return getattr(module, name)
    return module.normalized_shape[-1]
