"""Convolutions and transposed convolutions, channels last, with Flax's padding."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.operations.linear import LinearOperation, is_placed

Padding = str | int | Sequence[int | tuple[int, int]]
_NAMED = ("SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL")


def convolution(
    x_shape: tuple[int, ...],
    window: tuple[int, ...],
    *,
    strides: tuple[int, ...],
    padding: Padding,
    input_dilation: tuple[int, ...],
    kernel_dilation: tuple[int, ...],
    groups: int,
    mask: Any = None,
    conv_general_dilated: Callable[..., jax.Array] = lax.conv_general_dilated,
    **kwargs: Any,
) -> tuple[LinearOperation, list[tuple[int, int]], str]:
    """The convolution of `flax.linen.Conv`, and how x has to be padded before it.

    Returns:
        (operation, pads, mode): apply the operation to ``jnp.pad(x, pads, mode=mode)``.
    """
    rank = len(window)
    reach = [(k - 1) * d + 1 for k, d in zip(window, kernel_dilation, strict=True)]
    pads, mode = [(0, 0)] * rank, "constant"
    padding = canonical_padding(padding, rank)
    if padding in ("CIRCULAR", "REFLECT"):
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[str(padding)]
        pads, padding = [((k - 1) // 2, k // 2) for k in reach], "VALID"
    elif padding == "CAUSAL":
        if rank != 1:
            raise ValueError(
                f"padding: got 'CAUSAL' with {rank} spatial axes, expected 1; causal padding has "
                "one direction only"
            )
        pads, padding = [(reach[0] - 1, 0)], "VALID"
    spatial = [
        (n + low + high - 1) * d + 1
        for n, (low, high), d in zip(x_shape[-1 - rank : -1], pads, input_dilation, strict=True)
    ]
    zeros = padding
    if isinstance(zeros, str):
        zeros = lax.padtype_to_pads(spatial, reach, strides, zeros)
    padded = any(p > 0 for pair in zeros for p in pair) or max(input_dilation) > 1

    def apply(x, kernel, **other):
        return conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=input_dilation,
            rhs_dilation=kernel_dilation,
            dimension_numbers=_channels_last(rank),
            feature_group_count=groups,
            **(kwargs | other),
        )

    placed = is_placed(kwargs)
    operation = LinearOperation(apply, groups, padded, rank, mask, placed)
    return operation, [(0, 0), *pads, (0, 0)], mode


def transposed_convolution(
    window: tuple[int, ...],
    *,
    strides: tuple[int, ...],
    padding: Padding,
    kernel_dilation: tuple[int, ...],
    transpose_kernel: bool,
    mask: Any = None,
    **kwargs: Any,
) -> LinearOperation:
    """The convolution of `flax.linen.ConvTranspose`; kernel [..., C, O], not transposed.

    Between two inputs there are zeros (as many as the stride leaves out), and each tap reads its
    share of them: they are samples of value 0, as padding is.
    """
    rank = len(window)
    padding = canonical_padding(padding, rank)
    if padding in ("REFLECT", "CAUSAL"):
        raise ValueError(f"padding: got {padding!r}, expected 'SAME', 'VALID', 'CIRCULAR' or pairs")
    circular = padding == "CIRCULAR"

    def apply(x, kernel):
        if transpose_kernel:
            kernel = jnp.swapaxes(kernel, -1, -2)
        z = lax.conv_transpose(
            x,
            kernel,
            strides,
            "VALID" if circular else padding,
            rhs_dilation=kernel_dilation,
            dimension_numbers=_channels_last(rank),
            transpose_kernel=transpose_kernel,
            **kwargs,
        )
        if circular:
            period = [n * s for n, s in zip(x.shape[1:-1], strides, strict=True)]
            z = _wrap(z, period, extra_behind=transpose_kernel)
        return z

    swapped = (*range(rank), rank + 1, rank) if transpose_kernel else None
    return LinearOperation(apply, 1, padded=True, spatial_axes=rank, mask=mask, kernel_axes=swapped)


def _wrap(z: jax.Array, period: list[int], *, extra_behind: bool) -> jax.Array:
    """Sum what lies a period apart, aligned as in `flax.linen.ConvTranspose`."""
    pads = []
    for n, p in zip(z.shape[1:-1], period, strict=True):
        missing = -(n - p) % (2 * p)
        small, large = missing // 2, (missing + 1) // 2
        pads.append((small, large) if extra_behind else (large, small))
    z = jnp.pad(z, [(0, 0), *pads, (0, 0)])
    for axis, p in enumerate(period, start=1):
        z = z.reshape(*z.shape[:axis], -1, p, *z.shape[axis + 1 :]).sum(axis=axis)
    return z


def canonical_padding(padding: Padding, rank: int) -> str | tuple[tuple[int, int], ...]:
    """Flax's padding, a name or one pair per spatial axis."""
    if isinstance(padding, str):
        if padding not in _NAMED:
            raise ValueError(
                f"padding: got {padding!r}, expected one of {', '.join(map(repr, _NAMED))}, an int "
                "or one int or pair per spatial axis"
            )
        return padding
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    pairs: Any = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
    if len(pairs) != rank or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"padding: got {padding!r}, expected one int or pair for each of {rank} spatial axes"
        )
    return pairs


def broadcast(name: str, value: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """One int per spatial axis; None is 1."""
    if value is None:
        value = 1
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or min(values, default=1) < 1:
        raise ValueError(
            f"{name}: got {value!r}, expected an int >= 1 or one for each of {rank} spatial axes"
        )
    return values


def flatten_batch(x: jax.Array, rank: int) -> jax.Array:
    """All axes before the spatial ones as one, as Flax does; none becomes one of length 1."""
    return x.reshape(math.prod(x.shape[: x.ndim - rank - 1]), *x.shape[x.ndim - rank - 1 :])


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    space = tuple(range(1, rank + 1))
    return lax.ConvDimensionNumbers(
        (0, rank + 1, *space), (rank + 1, rank, *range(rank)), (0, rank + 1, *space)
    )
