"""Input standardization that is fitted on training data only."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.checks import dtype_name

#: The axes of the features.
Axis = int | tuple[int, ...]


class Standardization(NamedTuple):
    """What was fitted; tensors of float64 from `fit`.

    Attributes:
        count: how many values of each feature were seen.
        mean: in the shape of the features.
        var: biased, in the shape of the features.
    """

    count: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor


def fit(x: Any, axis: Axis = 1) -> Standardization:
    """Mean and variance of each feature of the training data, in float64.

    As `jaxnorm.normalizers.standardize.fit`, which has the whole text, but the features are along
    axis 1, where PyTorch has its channels.

        y = (x - mean) / sqrt(var),    y = x - mean where var = 0

    Args:
        x: any tensor of real numbers, integers and booleans too, or what becomes one.
        axis: of the features, default 1. For images [N, C, H, W]: 1 for a mean per channel,
            (1, 2, 3) for one per pixel, () for one in all.

    Returns:
        The state, for `apply`.

    Raises:
        TypeError: for an x that is not real.
        ValueError: for no values, values that are not finite, an axis that x has not.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import standardize
        >>> train, test = torch.tensor([[1.0, 7.0], [3.0, 7.0]]), torch.tensor([[4.0, 8.0]])
        >>> state = standardize.fit(train)
        >>> standardize.apply(test, state).tolist()
        [[2.0, 1.0]]

    References:
        As the twin.
    """
    values = (x if isinstance(x, torch.Tensor) else torch.as_tensor(x)).detach()
    if values.is_complex():
        raise TypeError(f"x: got dtype {dtype_name(values)}, expected real numbers")
    moments = batch_moments(values.to(torch.float64), axis)
    if not bool(moments.mean.isfinite().all() & moments.var.isfinite().all()):
        raise ValueError(
            "x: got values that are not finite, expected finite ones; drop or fill them before"
        )
    return moments


def fit_stream(batches: Iterable[Any], axis: Axis = 1) -> Standardization:
    """As `fit`, of data that come in batches, as of all at once; one pass, one batch in memory.

    Args:
        batches: tensors as in `fit`, of any sizes.
        axis: as in `fit`.

    Returns:
        The state, for `apply`.

    Raises:
        TypeError: as `fit`.
        ValueError: as `fit`; for no batch, or batches of other features.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import standardize
        >>> x = torch.arange(10.0)[:, None]
        >>> state = standardize.fit_stream([x[:3], x[3:4], x[4:]])
        >>> float(state.count), round(float(state.mean[0]), 9), round(float(state.var[0]), 9)
        (10.0, 4.5, 8.25)
    """
    state = None
    for batch in batches:
        new = fit(batch, axis)
        state = new if state is None else merge(state, new)
    if state is None:
        raise ValueError("batches: got none, expected at least one")
    return state


def merge(one: Standardization, other: Standardization) -> Standardization:
    """Of the data of both, by Chan's formula: no digits are lost, however large the means are.

    Args:
        one: of some data.
        other: of others, of the same features.

    Returns:
        The state of all.

    Raises:
        ValueError: for other features.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import standardize
        >>> x = torch.tensor([[1e9], [1e9 + 2]], dtype=torch.float64)
        >>> state = standardize.merge(standardize.fit(x), standardize.fit(x + 4))
        >>> state.mean.tolist(), state.var.tolist()
        ([1000000003.0], [5.0])
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(
            f"features: got shape {tuple(other.mean.shape)}, expected {tuple(one.mean.shape)}, "
            "that of the batches before"
        )
    count = one.count + other.count
    new = other.count / count
    apart = other.mean - one.mean
    var = one.var + (other.var - one.var) * new + apart**2 * (new * (1 - new))
    return Standardization(count, one.mean + apart * new, var)


def apply(x: torch.Tensor, state: Standardization, axis: Axis = 1) -> torch.Tensor:
    """Standardize x by what was fitted, see `fit`.

    Args:
        x: any real tensor of the same features.
        state: from `fit` or `fit_stream`.
        axis: as in `fit`.

    Returns:
        In the dtype of x, or float32 for integers. Computed in at least float32, and without loss
        for means that are large beside the deviation.

    Raises:
        ValueError: for a state of no data, other features.

    Example: see `fit`.
    """
    axes = feature_axes(x.ndim, axis)
    check_fitted(state, tuple(x.shape), axes)
    dtype = x.dtype if x.is_floating_point() else torch.float32
    wide = torch.promote_types(dtype, torch.float32)
    high, low, root = (_beside(each.to(x.device), x, axes) for each in _parts(state, wide))
    return ((x.to(wide) - high - low) / root).to(dtype)


def invert(y: torch.Tensor, state: Standardization, axis: Axis = 1) -> torch.Tensor:
    """What `apply` has made y of; of constant features too.

    Args:
        y: of the same features, floating.
        state: from `fit` or `fit_stream`.
        axis: as in `fit`.

    Returns:
        In the dtype of y.

    Raises:
        ValueError: as `apply`.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import standardize
        >>> x = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
        >>> state = standardize.fit(x)
        >>> standardize.invert(standardize.apply(x, state), state).tolist()
        [[1.0, 7.0], [3.0, 7.0]]
    """
    axes = feature_axes(y.ndim, axis)
    check_fitted(state, tuple(y.shape), axes)
    wide = torch.promote_types(y.dtype, torch.float32)
    high, low, root = (_beside(each.to(y.device), y, axes) for each in _parts(state, wide))
    return (y.to(wide) * root + low + high).to(y.dtype)


def batch_moments(x: torch.Tensor, axis: Axis) -> Standardization:
    """Of one batch, in its precision."""
    axes = feature_axes(x.ndim, axis)
    others = tuple(each for each in range(x.ndim) if each not in axes)
    shape = tuple(x.shape[each] for each in axes)
    count = x.numel() // max(shape[0] if len(shape) == 1 else torch.Size(shape).numel(), 1)
    if count == 0 or x.numel() == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least one value per feature")
    first = x[tuple(slice(0, 1) if each in others else slice(None) for each in range(x.ndim))]
    apart = x - first
    mean = apart.mean(others, keepdim=True) if others else apart
    var = (apart - mean) ** 2
    var = var.mean(others, keepdim=True) if others else var
    number = x.new_tensor(count)
    return Standardization(number, (first + mean).reshape(shape), var.reshape(shape))


def feature_axes(ndim: int, axis: Axis) -> tuple[int, ...]:
    """The axes of the features, in order."""
    given = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(each, int) and -ndim <= each < ndim for each in given):
        raise ValueError(f"axis: got {axis!r}, expected axes of the {ndim} of x")
    return tuple(sorted({each % ndim for each in given}))


def check_fitted(state: Standardization, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Raise a ValueError for a state of no data, or of other features."""
    # Elsewhere the answer would have to be waited for.
    seen = (
        state.count.device.type != "cpu" or torch.compiler.is_compiling() or bool(state.count > 0)
    )
    if not seen:
        raise ValueError(
            "standardization: got one that has seen no data, expected a fitted one; fit it on the "
            "training data first"
        )
    features = tuple(shape[each] for each in axes)
    if tuple(state.mean.shape) != features:
        raise ValueError(
            f"x: got shape {tuple(shape)} with features {features}, expected features "
            f"{tuple(state.mean.shape)}, those that were fitted"
        )


def _parts(
    state: Standardization, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean, what rounding it to `dtype` leaves, deviation or 1), in `dtype`."""
    high = state.mean.to(dtype)
    low = (state.mean - high.to(state.mean.dtype)).to(dtype)
    root = torch.where(state.var == 0, 1, torch.sqrt(state.var))
    return high, low, root.to(dtype)


def _beside(value: torch.Tensor, x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Values per feature, beside x."""
    return value.reshape([x.shape[each] if each in axes else 1 for each in range(x.ndim)])


class Standardize(nn.Module):
    """Standardizes inputs by statistics that were fitted on training data, and never learned.

    As `jaxnorm.linen.normalizers.Standardize`, which has the whole text.

        y = (x - mean) / sqrt(var),    y = x - mean where var = 0

    The first layer of a model, so that the statistics are in its state_dict. Training and
    evaluation are the same; only `fit` and `update` change them.

    Args:
        features: their number, or shape, where there are several axes.
        axis: of the features, default 1.
        device: of the buffers.
        dtype: of the buffers, default float64.

    State: the buffers count [], mean and var in the shape of the features; 0, 0 and 1 at first.

    Raises:
        ValueError: where no data were seen (if the buffers are on the CPU), for other features.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.Standardize(2)
        >>> layer = layer.fit(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
        >>> layer(torch.tensor([[4.0, 8.0]])).tolist()
        [[2.0, 1.0]]
    """

    count: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor

    def __init__(
        self,
        features: int | tuple[int, ...],
        axis: Axis = 1,
        *,
        device: Any = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.features = features if isinstance(features, tuple) else (features,)
        self.axis = axis
        to = {"device": device, "dtype": dtype}
        self.register_buffer("count", torch.zeros((), **to))
        self.register_buffer("mean", torch.zeros(self.features, **to))
        self.register_buffer("var", torch.ones(self.features, **to))

    def fit(self, x: Any) -> "Standardize":
        """Fit to these data, and to no others: what was seen before is forgotten."""
        return self._store(fit(x, self.axis))

    def update(self, x: Any) -> "Standardize":
        """Take a batch into the statistics; each batch once."""
        new = fit(x, self.axis)
        state = Standardization(self.count, self.mean, self.var)
        wide = Standardization(*(each.to(new.mean) for each in state))
        return self._store(merge(wide, new))

    def _store(self, state: Standardization) -> "Standardize":
        check_fitted(state, tuple(self.features), tuple(range(len(self.features))))
        for buffer, value in zip((self.count, self.mean, self.var), state, strict=True):
            buffer.copy_(value)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardize x."""
        return apply(x, Standardization(self.count, self.mean, self.var), self.axis)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.features}, axis={self.axis}"
