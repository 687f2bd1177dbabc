"""What the normalizers refuse: what was got, what was expected, what to do.

The texts are the same, word for word, in jaxnorm and torchnorm.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any


def check_knob(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    """Raise an error unless `value` is a finite number that fits."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise an error unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected an int >= {least}")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected an int >= {least}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_channels(shape: tuple[int, ...], axis: int, channels: int | None) -> None:
    """Raise a ValueError unless x has samples, and as many channels along `axis`."""
    if len(shape) < 2 or not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"x: got shape {tuple(shape)}, expected at least two axes, samples and channels, the "
            f"channels along axis {axis}; reshape x"
        )
    if channels is not None and shape[axis] != channels:
        raise ValueError(
            f"x: got shape {tuple(shape)}, expected {channels} channels along axis {axis}; "
            "transpose x, or make the layer for these channels"
        )


def check_values(shape: tuple[int, ...], axis: int) -> None:
    """Raise a ValueError where a channel has too few values for statistics in training."""
    values = math.prod(shape) // max(shape[axis], 1)
    if values < 2:
        raise ValueError(
            f"x: got shape {tuple(shape)}, {values} value(s) for each channel, expected at least "
            "two in training; use a larger batch, or the running statistics"
        )


def check_given(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise a ValueError unless an argument has the expected shape."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name}: got shape {tuple(shape)}, expected {tuple(expected)}")
