"""Layers of other libraries, and yours: `register` says what a class computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchnorm.activations import DEFERRED
from torchnorm.backward.deferred import handle_of
from torchnorm.backward.linear_operation import record
from torchnorm.modules.base import Neuronwise
from torchnorm.operations.convolution import Convolution, broadcast, pad
from torchnorm.operations.given import Given
from torchnorm.operations.linear import Dense, LinearOperation

CHECKED = "_registered_and_checked"
"""The attribute of a layer whose operation was tried."""


@dataclass(frozen=True)
class Registration:
    """What was said of a class."""

    names: tuple[str, str]
    operation: Any


_registered: dict[type, Registration] = {}


def register(
    layer_class: type[nn.Module],
    *,
    weight: str = "weight",
    bias: str | None = "bias",
    operation: str | Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor] = "linear",
) -> None:
    """Say what a class of layers computes, so that `convert` takes them.

        forward(x, ...) = operation(layer, x, weight) + bias

    Needed only where PyTorch does not show the product: inside of a custom autograd function, a
    kernel, a compiled extension (fp8). What a module multiplies with by functions of PyTorch is
    found without (see `convert`).

    Forward (exact):      the layer's own; its `forward` is called as before
    Backward:             the layer's own, to the last bit; statistics are recorded beside it

    A subclass that has the same `forward` is registered with its class. Layers that are converted
    already stay as they are.

    Args:
        layer_class: the class; `forward` takes x first and returns one tensor.
        weight: the name of the weight's parameter, [O, I, *window]: neurons first, then what each
            of them reads.
        bias: that of the bias, [O]; None, or a layer in which it is None: there is none.
        operation: ``"linear"``, that of `torch.nn.functional.linear`; ``"conv"``, that of a
            convolution with the layer's own stride, padding (with zeros), dilation and groups; or a
            function of (layer, x, weight) that returns z without the bias, by operations that
            PyTorch differentiates. It must be linear in the weight, and in each sum each entry of
            the weight must be multiplied with one entry of x, once, without another factor. x and z
            have their channels before as many axes as the window has, at the end for a matrix. To
            be pickled with the model it must be importable.

    Raises:
        TypeError: for what is no class of modules, or no operation.
        ValueError: for one of torchnorm or of the layers that `convert` knows.

    Behavior: with its first call that records gradients, a converted layer is tried: that
    `forward` returns the operation's result (with an error below 20 %, as of fp8), and that a
    function is linear in the weight and multiplies once. If not, a ValueError says which. A
    registration is of the process: register before a pickled model is loaded.

    Transformations: as `convert`. Only the default form (``gradient="plain_with_statistics"``).

    Example:
        >>> import torch, torchnorm
        >>> class Kernel(torch.autograd.Function):  # PyTorch does not look inside
        ...     @staticmethod
        ...     def forward(ctx, x, weight):
        ...         ctx.save_for_backward(x, weight)
        ...         return x @ weight.T
        ...     @staticmethod
        ...     def backward(ctx, g_z):
        ...         x, weight = ctx.saved_tensors
        ...         return g_z @ weight, g_z.T @ x
        >>> class Fast(torch.nn.Module):
        ...     def __init__(self, inputs, outputs):
        ...         super().__init__()
        ...         self.matrix = torch.nn.Parameter(torch.randn(outputs, inputs))
        ...     def forward(self, x):
        ...         return Kernel.apply(x, self.matrix)
        >>> model = torch.nn.Sequential(Fast(3, 4), torch.nn.ReLU())
        >>> torchnorm.convert(model, torch.ones(2, 3))["0"].converted
        False
        >>> torchnorm.register(Fast, weight="matrix", bias=None)
        >>> torchnorm.convert(model, torch.ones(2, 3))["0"].gate
        'relu'
        >>> torchnorm.unregister(Fast)
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise TypeError(f"layer_class: got {layer_class!r}, expected a class of torch.nn.Module")
    known = layer_class in (nn.Module, nn.Linear) or issubclass(layer_class, Neuronwise)
    if known or layer_class in (getattr(nn, f"Conv{rank}d") for rank in (1, 2, 3)):
        raise ValueError(
            f"layer_class: got {layer_class.__name__}, expected a class that torchnorm.convert "
            "does not know; register a subclass of it"
        )
    if not callable(operation) and operation not in ("linear", "conv"):
        raise TypeError(
            f"operation: got {operation!r}, expected 'linear', 'conv' or a function of (layer, x, "
            "weight)"
        )
    _registered[layer_class] = Registration((weight, bias or ""), operation)


def unregister(layer_class: type[nn.Module]) -> None:
    """Take `register` back; revert the models that have such layers before.

    Args:
        layer_class: a class that was registered.

    Raises:
        ValueError: for one that was not.

    Example:
        >>> import torch, torchnorm
        >>> class Mine(torch.nn.Module):
        ...     pass
        >>> torchnorm.register(Mine)
        >>> torchnorm.unregister(Mine)
    """
    if _registered.pop(layer_class, None) is None:
        raise ValueError(f"layer_class: got {layer_class!r}, expected one that was registered")


def registered_as(kind: type) -> Registration | None:
    """What was said of a class, or of the one whose forward it has."""
    for base in kind.__mro__ if _registered else ():
        if base in _registered:
            return _registered[base] if _forward(kind) is _forward(base) else None
    return None


def _forward(kind: type) -> Any:
    """A class's own forward, not ours."""
    theirs = (vars(base) for base in kind.__mro__ if base is not Registered)
    return next((names["forward"] for names in theirs if "forward" in names), None)


class Registered(Neuronwise):
    """The first base of such a layer; see `torchnorm.modules.made`. Made by `convert` only."""

    @property
    def registration(self) -> Registration:
        """What was said of the layer's class."""
        found = registered_as(type(self))
        if found is None:
            raise ValueError(
                f"layer_class: got {type(self).__name__}, which is not registered any more, "
                "expected one that is; call torchnorm.register, or torchnorm.revert(model)"
            )
        return found

    @property
    def parameter_names(self) -> tuple[str, str]:  # type: ignore[override]
        """What the layer calls its weight and its bias."""
        found = registered_as(type(self))
        return ("weight", "bias") if found is None else found.names

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's own."""
        z = super().forward(x, *args, **kwargs)
        weight, bias = self.own_pair()
        if not torch.is_grad_enabled() or weight is None:
            return (z, handle_of(z)) if self.gate is DEFERRED else z
        operation, inputs = _operation(self, self.registration.operation, x, weight)
        if CHECKED not in vars(self) and not torch.compiler.is_compiling():
            with torch.no_grad():
                _check(self, operation, x.detach(), z.detach(), weight.detach(), bias)
            vars(self)[CHECKED] = True
        single = operation.spatial_axes and x.ndim == operation.spatial_axes + 1
        if single:
            z, inputs = z[None], inputs[None]
        out = record(operation, z, inputs, weight, bias, **self.settings())
        if not single:
            return out
        return tuple(each[0] for each in out) if isinstance(out, tuple) else out[0]


def _operation(
    layer: Any, given: Any, x: torch.Tensor, weight: torch.Tensor
) -> tuple[LinearOperation, torch.Tensor]:
    """The operation, and x as it takes it."""
    rank = weight.ndim - 2
    if given == "linear":
        return Dense(), x
    if given == "conv":
        stride = broadcast("stride", layer.stride, rank, 1)
        dilation = broadcast("dilation", layer.dilation, rank, 1)
        x, padding = pad(x, weight.shape[2:], stride, layer.padding, dilation)
        options: Any = {"stride": stride, "padding": padding, "dilation": dilation}
        return Convolution(layer.groups, any(padding), rank, **options), x
    groups = x.shape[x.ndim - 1 - rank] // weight.shape[1]
    shape = tuple(weight.shape)
    options = {"function": lambda x, weight: given(layer, x, weight), "shape": shape}
    return Given(groups, rank > 0, rank, **options), x


def _check(
    layer: Any,
    operation: LinearOperation,
    x: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    bias: Any,
) -> None:
    """Raise a ValueError unless the layer computes what was said of it."""
    name = layer.registration.operation
    said = name if isinstance(name, str) else getattr(name, "__name__", "the function")

    def computed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if isinstance(operation, Given):
            return operation.function(x, weight)
        return operation.apply(_operation(layer, name, x, weight)[1], weight, None)

    def wrong(what: str) -> ValueError:
        return ValueError(
            f"operation: got {said!r} for {type(layer).__name__}, {what}; register the class with "
            "the operation that it computes, or leave it out"
        )

    x, z = (x[:4], z[:4]) if x.ndim > 1 + operation.spatial_axes else (x, z)
    with torch.autocast(x.device.type, enabled=False):
        if x.dtype != weight.dtype:
            x = x.to(weight.dtype)
        expected = computed(x, weight)
        if bias is not None:
            expected = expected + bias.detach().reshape(-1, *[1] * operation.spatial_axes)
        if expected.shape != z.shape or not _close(z, expected, 0.2):
            raise wrong("which is not what its forward returns, expected it (but for the bias)")
        if not isinstance(operation, Given):
            return
        coarse = torch.finfo(weight.dtype).eps ** 0.5 * 4
        other = _pattern(weight)
        both = 2 * computed(x, weight) + computed(x, other)
        if not _close(computed(x, 2 * weight + other), both, coarse):
            raise wrong("which is not linear in the weight, expected one that is")
        x = _pattern(x)
        one = torch.zeros_like(computed(x, weight))
        one.view(-1)[one.numel() // 2] = 1
        once, squared = (operation.kernel_grad(v, weight, one) for v in (x, x * x))
        if not _close(squared, once * once, coarse):
            raise wrong(
                "in which an entry of the weight is not multiplied with one entry of x, once, "
                "without another factor, expected that"
            )


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    difference = (one.double() - other.double()).norm()
    return bool(difference <= tolerance * other.double().norm() + 1e-30)


def _pattern(like: torch.Tensor) -> torch.Tensor:
    """Numbers that are unlike one another, without asking the random state."""
    values = torch.arange(like.numel(), device=like.device, dtype=torch.float32)
    return (1.5 + (values * 2.399).sin()).reshape(like.shape).to(like.dtype)
