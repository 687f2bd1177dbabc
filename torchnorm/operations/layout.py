"""How a parameter lies: as [neurons, inputs, ...] and back."""

from dataclasses import dataclass, replace

import torch

from torchnorm.operations.convolution import swap_channels


@dataclass(frozen=True)
class Layout:
    """A weight that is permuted, reshaped, permuted and taken as a matrix per part.

    Attributes:
        stored: the parameter's shape.
        before: its axes, in a new order; empty as they are.
        view: what it is reshaped to then; empty where it is not.
        after: the axes of that, in a new order.
        shape: what it is in the end: [O, I, *window], or [parts, O, I].
        groups: of a convolution.
        swapped: whether it is a transposed one, whose channels are swapped in the end.
        parts: of how many weights it is made, each with samples of its own; 0 for one that is not.
    """

    stored: tuple[int, ...]
    before: tuple[int, ...] = ()
    view: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    groups: int = 1
    swapped: bool = False
    parts: int = 0

    def permuted(self, axes: tuple[int, ...]) -> "Layout":
        """With another change of the order of axes at the end."""
        name = "after" if self.view else "before"
        now = getattr(self, name) or tuple(range(len(axes)))
        return replace(self, **{name: tuple(now[axis] for axis in axes)})

    def reshaped(self, shape: tuple[int, ...]) -> "Layout | None":
        """With another reshape at the end, None where that is no single one."""
        if self.after and self.after != tuple(range(len(self.after))):
            return None
        return replace(self, view=shape, after=())

    def now(self) -> tuple[int, ...]:
        """The shape after all these."""
        shape = tuple(self.stored[axis] for axis in self.before) or self.stored
        shape = self.view or shape
        return tuple(shape[axis] for axis in self.after) or shape

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The parameter as [neurons of all parts, I, *window]."""
        for axes, shape in ((self.before, self.view), (self.after, ())):
            weight = weight.permute(axes) if axes else weight
            weight = weight.reshape(shape) if shape else weight
        if self.swapped:
            return swap_channels(weight, self.groups)
        return weight.reshape(self._matrix())

    def back(self, weight: torch.Tensor) -> torch.Tensor:
        """The way back."""
        if self.swapped:
            weight = swap_channels(weight, self.groups)
        else:
            weight = weight.reshape(self.now())
        if self.after:
            weight = weight.permute(_inverse(self.after))
        if self.view:
            permuted = tuple(self.stored[axis] for axis in self.before) or self.stored
            weight = weight.reshape(permuted)
        return weight.permute(_inverse(self.before)) if self.before else weight

    def _matrix(self) -> tuple[int, ...]:
        if self.parts:
            return (self.shape[0] * self.shape[1], *self.shape[2:])
        return self.shape

    @property
    def neurons(self) -> tuple[int, ...]:
        """The shape of one part as [O, I, *window]."""
        return self.shape[1:] if self.parts else self.shape


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))
