"""Which of PyTorch's functions multiply by a weight, and how: read from one call."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from torchnorm.operations.convolution import Convolution, TransposedConvolution, broadcast, pad
from torchnorm.operations.linear import Dense, LinearOperation

_CONV = {f"conv{rank}d": rank for rank in (1, 2, 3)}
_TRANSPOSED = {f"conv_transpose{rank}d": rank for rank in (1, 2, 3)}
_MATMUL = frozenset("matmul __matmul__ mm bmm".split())
_ADDED = frozenset("addmm baddbmm".split())
_SEGMENTS = frozenset("grouped_mm _grouped_mm grouped_mm_fallback".split())
NAMES = {"linear", "einsum", "__rmatmul__", *_CONV, *_TRANSPOSED, *_MATMUL, *_ADDED, *_SEGMENTS}
"""The functions, by the names that `torch.overrides` reports."""
_CONV_ARGUMENTS = ("stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = ("stride", "padding", "output_padding", "groups", "dilation")


@dataclass(frozen=True)
class Contraction:
    """A product of x and a weight over their common axes, by the axes of each.

    Attributes:
        x: axes of x: (of parts, of samples, summed).
        weight: axes of the weight: (of parts, of neurons, summed).
        z: axes of the result: (of parts, of samples, of neurons).
    """

    x: tuple[tuple[int, ...], ...]
    weight: tuple[tuple[int, ...], ...]
    z: tuple[tuple[int, ...], ...]

    def take(self, tensor: torch.Tensor, axes: tuple[tuple[int, ...], ...]) -> torch.Tensor:
        """A tensor as [parts, samples, last], without parts as [*samples, last]."""
        order = tuple(axis for group in axes for axis in group)
        if order != tuple(range(len(order))):
            tensor = tensor.permute(order)
        parts, samples, last = (len(group) for group in axes)
        if not parts:
            return tensor if last == 1 else tensor.flatten(samples)
        tensor = tensor if last == 1 else tensor.flatten(parts + samples)
        return tensor.reshape(tensor.shape[:parts].numel(), -1, tensor.shape[-1])

    def give(self, z: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What `take` has made of z, as it was."""
        order = tuple(axis for group in self.z for axis in group)
        z = z.reshape([like.shape[axis] for axis in order])
        if order != tuple(range(len(order))):
            z = z.permute(sorted(range(len(order)), key=order.__getitem__))
        return z


class Reading(NamedTuple):
    """One call of a function that multiplies by a weight.

    Attributes:
        x: what is multiplied.
        bias: what is added in the same call, or None.
        contraction: how, of a dense product; None for a convolution.
        operation: the linear operation, where there are no parts.
        ends: [parts], where the rows of each part end; None where there are no such.
    """

    x: torch.Tensor
    bias: Any
    contraction: Contraction | None
    operation: LinearOperation
    ends: torch.Tensor | None = None


def read(name: str, args: tuple, kwargs: dict, weight: torch.Tensor) -> Reading | None:
    """How this call multiplies by the weight; None if it does something else with it."""
    if name == "linear":
        x, w, bias = _bound(("input", "weight", "bias"), args, kwargs)
        if w is not weight or x is weight or weight.ndim != 2:
            return None
        return Reading(x, bias, _linear(x.ndim), Dense())
    if name in _CONV or name in _TRANSPOSED:
        return _convolution(name, args, kwargs, weight)
    if name in _SEGMENTS:
        x, w, ends, bias = _bound(("input", "mat2", "offs", "bias"), args, kwargs)
        if w is not weight or ends is None or bias is not None or x.ndim != 2 or weight.ndim != 3:
            return None
        return Reading(x, None, _SEGMENTED, Dense(), ends)
    bias = None
    if name == "einsum":
        return _einsum(args, weight)
    if name in _ADDED:
        if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1 or len(args) != 3:
            return None
        bias, *args = args  # type: ignore[assignment]
    if name not in NAMES or len(args) != 2:
        return None
    one, other = args[::-1] if name == "__rmatmul__" else args
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)) or one is other:
        return None
    found = _matmul_labels(one.ndim, other.ndim)
    if found is None:
        return None
    product = _of_labels(*found, first=other is weight, shapes=(one.shape, other.shape))
    return (
        None
        if product is None
        else Reading(one if other is weight else other, bias, product, Dense())
    )


#: Rows of parts, one part after another.
_SEGMENTED = Contraction(((), (0,), (1,)), ((0,), (2,), (1,)), ((), (0,), (1,)))


def _linear(rank: int) -> Contraction:
    lead, last = tuple(range(rank - 1)), (rank - 1,)
    return Contraction(((), lead, last), ((), (0,), (1,)), ((), lead, last))


def _bound(names: tuple[str, ...], args: tuple, kwargs: dict) -> list[Any]:
    return [args[at] if at < len(args) else kwargs.get(n) for at, n in enumerate(names)]


def _convolution(name: str, args: tuple, kwargs: dict, weight: torch.Tensor) -> Reading | None:
    rank, transposed = (_CONV | _TRANSPOSED)[name], name in _TRANSPOSED
    names = _TRANSPOSED_ARGUMENTS if transposed else _CONV_ARGUMENTS
    x, w, bias, *given = _bound(("input", "weight", "bias", *names), args, kwargs)
    if w is not weight or x is weight:
        return None
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    values = {
        n: defaults[n] if value is None else value for n, value in zip(names, given, strict=True)
    }
    groups = values["groups"]
    stride = broadcast("stride", values["stride"], rank, 1)
    dilation = broadcast("dilation", values["dilation"], rank, 1)
    options: Any = {"stride": stride, "dilation": dilation}
    if transposed:
        options["output_padding"] = broadcast("output_padding", values["output_padding"], rank, 0)
        options["padding"] = broadcast("padding", values["padding"], rank, 0)
        return Reading(x, bias, None, TransposedConvolution(groups, True, rank, **options))
    x, padding = pad(x, weight.shape[2:], stride, values["padding"], dilation)
    operation = Convolution(groups, any(padding), rank, padding=padding, **options)
    return Reading(x, bias, None, operation)


def _matmul_labels(one: int, other: int) -> tuple[str, str, str] | None:
    """The axes of a, b and a @ b by letters; the last two are the matrices, "k" is summed."""
    if min(one, other) < 1:
        return None
    lead = "abcdefgh"[: max(one, other, 2) - 2]
    a = "k" if one == 1 else lead[len(lead) - (one - 2) :] + "mk"
    b = "k" if other == 1 else lead[len(lead) - (other - 2) :] + "kn"
    return a, b, lead + "m" * (one > 1) + "n" * (other > 1)


def _einsum(args: tuple, weight: torch.Tensor) -> Reading | None:
    if len(args) != 3 or not isinstance(args[0], str) or args[1] is args[2]:
        return None
    equation = args[0].replace(" ", "")
    ins, arrow, out = equation.partition("->")
    terms, operands = ins.split(","), args[1:]
    if not arrow or len(terms) != 2:
        return None
    if any("..." in term for term in terms):
        ranks = [
            len(o.shape) - len(t.replace("...", "")) for t, o in zip(terms, operands, strict=True)
        ]
        ranks = [rank if "..." in term else 0 for rank, term in zip(ranks, terms, strict=True)]
        if min(ranks) and max(ranks):  # of both: which are one another's
            return None
        spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
        dots = "".join(spare[: max(ranks)])
        *terms, out = (term.replace("...", dots) for term in (*terms, out))
    first = operands[1] is weight
    shapes = (operands[0].shape, operands[1].shape)
    product = _of_labels(terms[0], terms[1], out, first=first, shapes=shapes)
    return None if product is None else Reading(operands[1 - first], None, product, Dense())


def _of_labels(
    one: str, other: str, out: str, *, first: bool, shapes: tuple[torch.Size, torch.Size]
) -> Contraction | None:
    """The product of x and a weight from the letters of their axes; None if it is no such."""
    x, w = (one, other) if first else (other, one)
    x_shape, w_shape = shapes if first else shapes[::-1]
    if any(len(set(term)) != len(term) for term in (x, w, out)):
        return None
    if any(x_shape[x.index(c)] != w_shape[w.index(c)] for c in x if c in w):
        return None  # one entry for many: the weight is used in several places at once
    parts = [c for c in w if c in x and c in out]
    summed = [c for c in w if c in x and c not in out]
    neurons = [c for c in out if c in w and c not in x]
    samples = [c for c in out if c in x and c not in w]
    if len(parts) + len(summed) + len(neurons) != len(w) or not summed or not neurons:
        return None
    if len(parts) + len(summed) + len(samples) != len(x):
        return None

    def axes(term: str, *groups: list[str]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(term.index(c) for c in group) for group in groups)

    return Contraction(
        axes(x, parts, samples, summed),
        axes(w, parts, neurons, summed),
        axes(out, parts, samples, neurons),
    )
