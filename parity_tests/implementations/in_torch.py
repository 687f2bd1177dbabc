"""Each operation as a user of PyTorch writes it, with our functions and modules or its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import torchnorm
from parity_tests.cases import Case
from parity_tests.oracle import Convolution, Dense, TorchConvTranspose

MODES = {"CIRCULAR": "circular", "REFLECT": "reflect"}


def gate(name: str | None) -> Any:
    """The gate of a case as a user writes it."""
    return torchnorm.JointGate(swiglu) if name == "swiglu" else name


def swiglu(z: torch.Tensor) -> torch.Tensor:
    """The first half of the neurons gates the second."""
    a, b = z.chunk(2, dim=-1)
    return F.silu(a) * b


def deferred(case: Case, out: Any) -> Any:
    """What a layer returns, told of its gate if it waits for that."""
    if not case.deferred:
        return out
    z, handle = out
    return torchnorm.tell_gate(z, handle, gate(case.gate))


def supports(case: Case) -> bool:
    """Whether PyTorch has the operation: no einsum, no masks, no dilated input, its own transposed.

    And no fourth spatial axis.
    """
    if isinstance(case.op, Convolution):
        dilated = case.op.input_dilation not in (1, (1,) * (case.kernel.ndim - 2))
        negative = min(min(p) for p in _pads(case)) < 0
        return not dilated and not negative and case.mask is None
    return isinstance(case.op, Dense | TorchConvTranspose)


def channels_first(x: torch.Tensor, case: Case) -> torch.Tensor:
    """The images of a case [..., *space, C] as [N, C, *space] or, without a batch, [C, *space]."""
    space = _spatial(case)
    if not space:
        return x
    if case.x.ndim > space + 1:
        x = x.reshape(-1, *x.shape[x.ndim - space - 1 :])
    return x.movedim(-1, -1 - space)


def channels_last(z: torch.Tensor, case: Case) -> torch.Tensor:
    """And back."""
    space = _spatial(case)
    return z.movedim(-1 - space, -1).reshape(case.delta.shape) if space else z


def functional(case: Case, x: Any, weight: Any, bias: Any, package: Any, options: Any) -> Any:
    """The function for the operation: `torchnorm.functional`'s or the framework's."""
    prefix = "" if package is F else "neuronwise_"
    rank = _spatial(case)
    match case.op:
        case Dense():
            return getattr(package, f"{prefix}linear")(x, weight, bias, **options)
        case Convolution():
            x, padding = _padded(case, x)
            conv = getattr(package, f"{prefix}conv{rank}d")
            return conv(x, weight, bias, *_geometry(case.op, padding), **options)
        case TorchConvTranspose():
            conv = getattr(package, f"{prefix}conv_transpose{rank}d")
            return conv(x, weight, bias, **vars(case.op), **options)
    raise NotImplementedError(case.op)


def module(case: Case, package: Any, options: Any) -> tuple[Any, Any]:
    """The module for the operation, from `torchnorm` or `torch.nn`, and what goes before it."""
    rank, shape = _spatial(case), case.kernel.shape
    options = {"bias": case.bias is not None, "dtype": getattr(torch, case.dtype), **options}
    match case.op:
        case Dense():
            return package.Linear(*shape, **options), None
        case TorchConvTranspose():
            ends = (shape[0], shape[1] * case.op.groups)
            conv = getattr(package, f"ConvTranspose{rank}d")
            return conv(*ends, shape[2:], **vars(case.op), **options), None
        case Convolution():
            conv = getattr(package, f"Conv{rank}d")
            ends = (shape[-2] * case.op.feature_group_count, shape[-1], shape[:-2])
            pads = _pads(case)
            even = all(low == high for low, high in pads)
            mode = MODES.get(str(case.op.padding), "zeros")
            if even or (str(case.op.padding) in ("SAME", *MODES) and case.op.strides == 1):
                padding = tuple(low for low, _ in pads) if even else "same"
                options = {"padding_mode": mode, **options}
                return conv(*ends, *_geometry(case.op, padding), **options), None
            layer = conv(*ends, *_geometry(case.op, 0), **options)
            return layer, lambda x: F.pad(x, _flat(pads), MODES.get(mode, "constant"))
    raise NotImplementedError(case.op)


def _spatial(case: Case) -> int:
    return 0 if isinstance(case.op, Dense) else case.kernel.ndim - 2


def _pads(case: Case) -> Any:
    assert isinstance(case.op, Convolution)
    window = case.kernel.shape[:-2]
    return case.op.pads(case.x.shape[-1 - len(window) : -1], window)


def _padded(case: Case, x: Any) -> tuple[Any, Any]:
    """(x, padding): what the function cannot do itself is laid round x before."""
    assert isinstance(case.op, Convolution)
    pads, mode = _pads(case), MODES.get(str(case.op.padding))
    if mode is not None:
        return F.pad(x, _flat(pads), mode), 0
    if case.op.padding == "SAME" and case.op.strides == 1:
        return x, "same"
    if all(low == high for low, high in pads):
        return x, tuple(low for low, _ in pads)
    return F.pad(x, _flat(pads)), 0


def _flat(pads: Any) -> list[int]:
    """As `torch.nn.functional.pad` wants them: the last axis first."""
    return [n for pair in reversed(pads) for n in pair]


def _geometry(op: Convolution, padding: Any) -> tuple[Any, ...]:
    """The framework's positional arguments."""
    return op.strides, padding, op.kernel_dilation, op.feature_group_count


def gather(layer: Any, case: Case, x: Any) -> None:
    """Let a layer that records know the mean of its inputs."""
    z = deferred(case, layer(x))
    z.backward(torch.ones_like(z))
    stats = layer.neuron_stats
    stats.write(stats.gathered())
    stats.forget()
    layer.zero_grad()
