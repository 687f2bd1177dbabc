"""The hooks of an optimizer before its step, and how everything is taken off again."""

from collections.abc import Callable
from typing import Any

import torch

from torchnorm.optim.refusals import check_kind, is_wrapped
from torchnorm.optim.wrapped_class import unwrap


def before_step(optimizer: Any, name: str, adapt: Callable[[Any], None]) -> None:
    """Call `adapt` of the optimizer when the gradients are there and it has not stepped yet.

    Args:
        optimizer: which is not to be kept by `adapt`: it keeps that.
        name: of what is done, for `handles`.
        adapt: what is done.
    """

    def evaluated(closure: Callable[[], Any], optimizer: Any) -> Callable[[], Any]:
        def run() -> Any:
            loss = closure()
            with torch.no_grad():
                adapt(optimizer)
            return loss

        return run

    def hook(optimizer: Any, args: tuple, kwargs: dict) -> Any:
        this, *rest = args
        if kwargs.get("closure") is not None:
            return args, kwargs | {"closure": evaluated(kwargs["closure"], optimizer)}
        if rest and rest[0] is not None:
            return (this, evaluated(rest[0], optimizer), *rest[1:]), kwargs
        with torch.no_grad():
            adapt(optimizer)
        return None

    handle = optimizer.register_step_pre_hook(hook)
    vars(optimizer).setdefault("_neuronwise_hooks", {}).setdefault(name, []).append(handle)


def handles(optimizer: Any) -> dict[str, list[Any]]:
    """Name -> handles of the hooks that the functions of this room have put onto an optimizer."""
    return vars(optimizer).get("_neuronwise_hooks", {})


def remove(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Take off what the functions of `torchnorm.optim` have put onto an optimizer and its model.

    The optimizer has its class and its `step` again, the model no hooks of ours and no statistics,
    as if there had never been any; schedulers and param groups stay. What was gathered in the
    coordinates (momentum, second moments) is no use outside of them: for layers that have made a
    step in them the optimizer starts anew. Parameters are left as they are.

    Where an optimizer is simply dropped, the model stops recording by itself.

    Args:
        optimizer: from `in_neuron_coordinates`, `bnp`, `quasi_diagonal`, `centralize` or
            `proximal`, or several of them.

    Returns:
        The same optimizer.

    Raises:
        TypeError: for what is no optimizer.
        ValueError: for one that has nothing to take off, that runs another, or whose `step` was
            replaced.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.Linear(3, 2, gate=None)
        >>> optimizer = torchnorm.optim.in_neuron_coordinates(
        ...     torch.optim.Adam(layer.parameters()), layer)
        >>> type(torchnorm.optim.remove(optimizer)) is torch.optim.Adam
        True
    """
    check_kind(optimizer, "remove")
    hooks = handles(optimizer)
    if not (hooks or is_wrapped(optimizer)):
        raise ValueError(
            "optimizer: got one that has nothing of torchnorm.optim on it, expected one that has"
        )
    if is_wrapped(optimizer):
        unwrap(optimizer)
    for handle in (handle for each in hooks.values() for handle in each):
        handle.remove()
    vars(optimizer).pop("_neuronwise_hooks", None)
    return optimizer
