"""What a function of PyTorch makes of a weight that is still linear in it: read from one call."""

from typing import Any, NamedTuple

import torch

PERMUTES = frozenset("transpose permute swapaxes swapdims movedim moveaxis T mT t".split())
_SAME = PERMUTES | frozenset(
    "view reshape flatten unflatten contiguous squeeze unsqueeze view_as reshape_as clone to float "
    "double half bfloat16 type type_as cpu cuda".split()
)
_SPLITS = frozenset("chunk split tensor_split unbind".split())
_SCALES = frozenset("mul multiply __mul__ __rmul__ div divide true_divide __truediv__".split())
_ADDS = frozenset("add __add__ __radd__ sub __sub__ rsub __rsub__".split())


class Derived(NamedTuple):
    """One tensor that was made of a weight.

    Attributes:
        tensor: the tensor.
        part: which part of the weight it is; [S] of S parts; None for all of it.
        factor: what all of it was multiplied by; None for 1.
        mask: what it was multiplied by entry by entry; None if it was not.
    """

    tensor: torch.Tensor
    part: Any = None
    factor: Any = None
    mask: torch.Tensor | None = None


def derived(name: str, args: tuple, kwargs: dict, weight: torch.Tensor, out: Any) -> list[Derived]:
    """What this call has made of the weight; none if it is not linear in it, or mixes entries."""
    first = bool(args) and args[0] is weight
    if name in _SAME:
        return [Derived(out)] if first and isinstance(out, torch.Tensor) else []
    if name in _SPLITS:
        axis = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        axis = args[1] if name == "unbind" and len(args) > 1 else axis
        whole = isinstance(out, tuple | list) and len({part.shape for part in out}) == 1
        return [Derived(part, k) for k, part in enumerate(out)] if whole and axis == 0 else []
    if name in ("__getitem__", "select", "index_select"):
        index = args[1] if name == "__getitem__" else kwargs.get("index", (*args, None, None)[2])
        axis = 0 if name == "__getitem__" else args[1] if len(args) > 1 else kwargs.get("dim")
        if name == "__getitem__" and first and _keeps_all(index):
            return [Derived(out)]
        return [Derived(out, index)] if first and axis == 0 and _is_index(index) else []
    if name in _SCALES or name in _ADDS:
        return _with_constant(name, args, kwargs, weight, out)
    return []


def _keeps_all(index: Any) -> bool:
    """Whether an index puts in axes, and nothing else."""
    index = index if isinstance(index, tuple) else (index,)
    return all(
        e is None or e is Ellipsis or (isinstance(e, slice) and e == slice(None)) for e in index
    )


def _is_index(index: Any) -> bool:
    if isinstance(index, torch.Tensor):
        return index.ndim < 2 and index.dtype in (torch.int64, torch.int32)
    return isinstance(index, int) and not isinstance(index, bool)


def _with_constant(name: str, args: tuple, kwargs: dict, weight: Any, out: Any) -> list[Derived]:
    if len(args) != 2 or kwargs or args[0] is args[1] or out.shape != weight.shape:
        return []
    first = args[0] is weight
    other = args[1] if first else args[0]
    one = not isinstance(other, torch.Tensor) or other.numel() == 1
    if name in _ADDS:
        # Of a constant: what is linear in the weight has its coordinates.
        negative = "sub" in name and ("rsub" in name) == first
        return [Derived(out, factor=-1 if negative else None)]
    division = "div" in name
    if division and not first:
        return []
    if isinstance(other, torch.Tensor):
        other = other.detach()
    if one:
        return [Derived(out, factor=1 / other if division else other)]
    return [] if division else [Derived(out, mask=other)]
