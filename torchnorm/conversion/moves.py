"""What happens to a layer's output on its way that is linear, and to its handle with it.

A slope that is told behind a concatenation, a slice or pooling comes back to the layer as the
framework's own derivative of these operations brings it: the part that is the layer's, an average
spread over what was averaged, a maximum at the entry that was it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from torchnorm.conversion.elementwise import AXIS_ARGUMENT, PERMUTATIONS, VIEWS
from torchnorm.conversion.extract import Slot, Step, make_step
from torchnorm.conversion.trace import Op, Value

_SPLITS = frozenset("chunk split tensor_split split_with_sizes unbind narrow select".split())
#: Of any axis, whatever the batch.
_ORDERS = frozenset("flip roll pixel_shuffle pixel_unshuffle channel_shuffle".split())
_REPEATS = frozenset("pad constant_pad_nd repeat_interleave".split())
_JOINS = frozenset("cat concat concatenate hstack stack".split())
_MAXIMA = frozenset(f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))
_MEANS = frozenset(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)) | {
    "interpolate",
    "upsample",
}


class Move:
    """One operation, on the output or on its handle.

    Attributes:
        mixes: whether one entry of the result depends on several.
        selects: whether some entries may be left out.
    """

    mixes = selects = False

    def __call__(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Do it; `shape` is that of the last result, as far as it is known."""
        raise NotImplementedError


@dataclass(frozen=True)
class Permuted(Move):
    """The axes in another order."""

    axes: tuple[int, ...]

    def __call__(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Permute."""
        return tensor.permute(self.axes)


@dataclass(frozen=True)
class Reshaped(Move):
    """Axes laid together or taken apart: in what follows, axes are permuted only."""

    def __call__(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Reshape."""
        return tensor.reshape(shape)


@dataclass(frozen=True)
class Padded(Move):
    """Put between others along an axis, at each of these places."""

    axis: int  # from the end
    places: tuple[tuple[int, int], ...]  # what lies before and behind
    stacked: bool

    def __call__(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Zeros in place of the others."""
        if self.stacked:
            tensor = tensor.unsqueeze(self.axis)
        around = [0, 0] * (-1 - self.axis)
        parts = [F.pad(tensor, (*around, *place)) for place in self.places]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


@dataclass(frozen=True)
class Replayed(Move):
    """The recorded operation; `index` is that of its result where it has several."""

    step: Step
    index: int | None = None
    mixes: bool = False
    selects: bool = False

    def __call__(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Run it."""
        out = self.step([tensor])
        return out if self.index is None else out[self.index]


@dataclass(frozen=True)
class Maximum(Replayed):
    """Pooling by the maximum."""

    mixes: bool = True
    selects: bool = True

    def of_handle(self, handle: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The handle's entries where the value has its maxima."""
        args = [value if isinstance(arg, Slot) else arg for arg in self.step.args]
        pool = getattr(F, f"{self.step.name}_with_indices")
        _, where = pool(*args, **{k: v for k, v in self.step.kwargs if k != "return_indices"})
        rank = int(self.step.name[-2])
        found = handle.flatten(-rank).gather(-1, where.flatten(-rank))
        return found.reshape(where.shape)


@dataclass(frozen=True)
class Transport:
    """The moves from a layer's output to u, done to its handle."""

    moves: tuple[Move, ...] = ()

    @property
    def needs_value(self) -> bool:
        """Whether it depends on the output's numbers."""
        return any(isinstance(move, Maximum) for move in self.moves)

    def __call__(
        self, handle: torch.Tensor, u: torch.Tensor, value: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """The handle, laid out as u is; None if it cannot be, of another pass perhaps."""
        shapes = self._shapes(tuple(u.shape))
        try:
            for move, shape in zip(self.moves, shapes, strict=True):
                before, handle = handle, self._moved(move, handle, shape, value)
                value = None if value is None else move(value, shape)
                del before
        except (RuntimeError, IndexError, ValueError):
            return None
        return handle if handle.shape == u.shape else None

    @staticmethod
    def _moved(move: Move, handle: Any, shape: Any, value: Any) -> torch.Tensor:
        return move.of_handle(handle, value) if isinstance(move, Maximum) else move(handle, shape)

    def _shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shapes of the results, as far as they follow from the last one."""
        shapes = []
        for move in reversed(self.moves):
            shapes.append(shape)
            if isinstance(move, Permuted) and len(move.axes) == len(shape):
                shape = tuple(shape[move.axes.index(axis)] for axis in range(len(shape)))
        return shapes[::-1]


def transport(moves: tuple[Move, ...]) -> Transport | None:
    """The same for a handle, if it can be done for any batch."""
    places = [n for n, move in enumerate(moves) if isinstance(move, Reshaped)]
    behind = moves[places[0] + 1 :] if places else ()
    if not all(isinstance(move, Permuted) for move in behind):
        return None
    return Transport(moves)


def layout_move(moves: tuple[Move, ...], value: Value, op: Op) -> tuple[Move, ...] | None:
    """The moves when an operation has changed the layout of a value only; None if it did more."""
    name, out = op.name, op.outs[0]
    if name not in VIEWS or out.numel != value.numel:
        return None
    if name in PERMUTATIONS:
        # The axes, whatever the function's arguments are called: from sizes that tell them apart.
        sizes = torch.empty(tuple(range(2, 2 + len(value.shape))), device="meta")
        axes = tuple(size - 2 for size in op.func(sizes, *op.args[1:], **op.kwargs).shape)
        if moves and isinstance(moves[-1], Permuted):
            axes, moves = tuple(moves[-1].axes[axis] for axis in axes), moves[:-1]
        return (*moves, Permuted(axes))
    if out.shape != value.shape and moves[-1:] != (Reshaped(),):
        return (*moves, Reshaped())
    return moves


def other_moves(value: Value, op: Op) -> list[tuple[Move, Value]]:
    """(move, result) of every result of an operation that selects, joins or pools; else none.

    Of no operation that takes some samples of the batch and not others.
    """
    name = op.name
    if op.func is None or not op.outs:
        return []
    if name in _JOINS:
        joined = _joined(value, op)
        return [] if joined is None else [(joined, op.outs[0])]
    if set(op.ins) != {value} or any(isinstance(arg, Value) for arg in op.args[1:]):
        return []
    step = make_step(op, {value: 0})
    several = name in ("chunk", "split", "tensor_split", "split_with_sizes", "unbind")
    if name in _SPLITS or name == "__getitem__":
        if _takes_samples(value, op):
            return []
        return [
            (Replayed(step, n if several else None, selects=True), out)
            for n, out in enumerate(op.outs)
        ]
    if len(op.outs) != 1:
        return []
    if name in _ORDERS or name in _REPEATS:
        return [(Replayed(step, selects=name in ("pad", "constant_pad_nd")), op.outs[0])]
    if name in _MEANS:
        return [(Replayed(step, mixes=True), op.outs[0])]
    return [(Maximum(step), op.outs[0])] if name in _MAXIMA else []


def _joined(value: Value, op: Op) -> Padded | None:
    """What a concatenation does with a value."""
    parts = op.args[0] if op.args else op.kwargs.get("tensors")
    if not isinstance(parts, list | tuple) or not all(isinstance(p, Value) for p in parts):
        return None
    stacked, rank = op.name == "stack", len(value.shape)
    if any(len(part.shape) != rank for part in parts):  # an empty one goes with any
        return None
    given = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", op.kwargs.get("axis", 0))
    axis = 1 if op.name == "hstack" else given
    axis = axis % (rank + stacked) - (rank + stacked)
    if axis == -rank - stacked:  # along the batch
        return None
    sizes = [1 if stacked else part.shape[axis] for part in parts]
    places = tuple(
        (sum(sizes[:n]), sum(sizes[n + 1 :])) for n, part in enumerate(parts) if part is value
    )
    return Padded(axis, places, stacked)


def _takes_samples(value: Value, op: Op) -> bool:
    """Whether an operation takes entries of the first axis."""
    if op.name == "__getitem__":
        index = op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
        if any(isinstance(entry, Value | list) for entry in index):
            return True
        first = next((entry for entry in index if entry is not None), Ellipsis)
        return first is not Ellipsis and first != slice(None)
    place = AXIS_ARGUMENT[op.name]
    axis = op.kwargs.get("dim", op.args[place] if len(op.args) > place else 0)
    return not isinstance(axis, int) or axis % len(value.shape) == 0


def all_entries(shape: torch.Size, ways: list[tuple[Move, ...]]) -> bool:
    """Whether these moves together leave out no entry of a tensor."""
    if any(not any(move.selects for move in moves) for moves in ways):
        return True
    if shape.numel() > 2**22:
        return False
    numbers, seen = torch.arange(1, shape.numel() + 1, device="cpu").reshape(shape), set()
    for moves in ways:
        found = numbers
        for move in moves:
            if isinstance(move, Reshaped):
                return False
            found = move(found, ())
        seen.update(found.unique().tolist())
    return len(seen - {0}) == shape.numel()
