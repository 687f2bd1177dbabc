"""Errors about what a normalizer is given. The same words in both packages."""

from collections.abc import Sequence


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
    shape: Sequence[int], values: float, per: str = "channel", remedy: str = "a larger batch"
) -> None:
    """Raise a ValueError where a mean would be that of a single value."""
    if values < 2:
        raise ValueError(
            f"x: got shape {tuple(shape)}, expected more than one value per {per}: a single value "
            f"is its own mean, so the output would not depend on it; use {remedy}"
        )
