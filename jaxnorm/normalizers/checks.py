"""What the normalizers refuse: what was got, what was expected, what to do.

The texts are the same, word for word, in jaxnorm and torchnorm.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.core import Tracer


class Interval(NamedTuple):
    """Where a knob has to lie, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


SHARE = Interval("a number in [0, 1]", lambda value: 0 <= value <= 1)
SHARE_OR_AVERAGE = SHARE._replace(words=f"{SHARE.words}, or None for the average over all batches")
BELOW_ONE = Interval("a number in [0, 1)", lambda value: 0 <= value < 1)
NOT_NEGATIVE = Interval("a number >= 0", lambda value: value >= 0)
POSITIVE = Interval("a number > 0", lambda value: value > 0)


def check_knob(name: str, value: Any, interval: Interval) -> None:
    """Raise an error unless `value` is a finite number in the interval."""
    if isinstance(value, Tracer):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected {interval.words}")
    if not (math.isfinite(value) and interval.holds(value)):
        raise ValueError(f"{name}: got {value}, expected {interval.words}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise an error unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected an int >= {least}")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected an int >= {least}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise a ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_given(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Raise a ValueError unless an argument has the expected shape."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name}: got shape {tuple(shape)}, expected {tuple(expected)}")


def check_rank(shape: Sequence[int], least: int = 2) -> None:
    """Raise a ValueError unless x has a batch, channels, and what is summed over."""
    if len(shape) < least:
        space = " and space" if least > 2 else ""
        raise ValueError(
            f"x: got shape {tuple(shape)}, expected at least {least} axes, a batch, "
            f"channels{space}; add the one that is missing"
        )


def check_channels(shape: Sequence[int], axis: int, channels: int) -> None:
    """Raise a ValueError unless x has as many channels as the layer."""
    if shape[axis] != channels:
        raise ValueError(
            f"x: got shape {tuple(shape)}, expected {channels} channels along axis {axis}; move "
            "the channels there, or make the layer anew"
        )


def check_features(shape: Sequence[int], features: Sequence[int]) -> None:
    """Raise a ValueError unless x ends in the axes that are normalized."""
    if tuple(shape[max(len(shape) - len(features), 0) :]) != tuple(features):
        raise ValueError(
            f"x: got shape {tuple(shape)}, expected its last axes to be {tuple(features)}; "
            "transpose x, or make the layer anew"
        )


def check_values(
    shape: Sequence[int],
    values: float,
    what: str = "value per channel",
    remedy: str = "a larger batch",
) -> None:
    """Raise a ValueError where a mean would be that of a single value."""
    if values < 2:
        raise ValueError(
            f"x: got shape {tuple(shape)}, expected more than one {what}: a single value is its "
            f"own mean, so the output would not depend on it; use {remedy}"
        )


def check_positions(positions: int, *, unbiased: bool) -> None:
    """Raise a ValueError where there is no unbiased variance over space."""
    if unbiased and positions < 2:
        raise ValueError(
            f"unbiased: got True with {positions} position per sample and channel, expected at "
            "least 2; use unbiased=False"
        )


def check_tracked(last: bool, unmasked: bool, alone: bool) -> None:
    """Raise a ValueError where running statistics of instances would be those of something else."""
    if not (last and unmasked and alone):
        raise ValueError(
            "track_running_stats: got True with feature_axes, a mask or axis_name, expected none "
            "of them; leave them out, or track nothing"
        )
