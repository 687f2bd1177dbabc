"""Errors about what a user passed in: what was got, what was expected, what to do.

The texts are the same, word for word, in jaxnorm and torchnorm.
"""

from typing import Any

import torch

from torchnorm.rule import Rule

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def check_floating(**tensors: Any) -> None:
    """Raise a TypeError unless all tensors, but those that are None, are real floating-point."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: got {type(tensor).__name__}, expected a torch.Tensor")
        dtype = dtype_name(tensor)
        if dtype not in _FLOATS:
            raise TypeError(
                f"{name}: got dtype {dtype}, expected one of {', '.join(_FLOATS)}; cast {name} "
                "first"
            )


_DENSE = {
    "nested": "its rows, or its padded form inside of torchnorm.neuron_mask",
    "sparse": "its to_dense()",
}


def check_dense(**tensors: torch.Tensor) -> None:
    """Raise a TypeError for a tensor whose rows do not lie in one dense block."""
    for name, tensor in tensors.items():
        if tensor.is_nested or tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            kind = "nested" if tensor.is_nested else "sparse"
            raise TypeError(
                f"{name}: got a {kind} tensor ({layout} layout), expected a dense one; pass "
                f"{_DENSE[kind]}"
            )


def dtype_name(value: torch.Tensor) -> str:
    """The dtype as NumPy spells it: float32, not torch.float32."""
    return str(value.dtype).removeprefix("torch.")


def check_rule(rule: Any) -> None:
    """Raise a TypeError unless `rule` is a Rule."""
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: got {rule!r}, expected a Rule, for example Rule(scale='layer')")


def check_inputs(x_shape: tuple[int, ...], inputs: int) -> None:
    """Raise a ValueError unless x ends in an axis of as many features as the layer has inputs."""
    if not x_shape or x_shape[-1] != inputs:
        raise ValueError(
            f"x: got shape {tuple(x_shape)}, expected (..., {inputs}), the last axis as long as "
            "the layer has inputs; transpose or reshape x"
        )


def check_matrix(name: str, shape: tuple[int, ...], letters: str) -> None:
    """Raise a ValueError unless `shape` has two axes."""
    if len(shape) != 2:
        raise ValueError(f"{name}: got shape {tuple(shape)}, expected two axes {letters}")


def check_window(shape: tuple[int, ...], space: int) -> None:
    """Raise a ValueError unless `shape` is that of a convolution's kernel."""
    if len(shape) != space + 2:
        raise ValueError(
            f"weight: got shape {tuple(shape)}, expected {space + 2} axes [O, C, *window]"
        )


def check_images(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int) -> None:
    """Raise a ValueError unless x and the groups fit a convolution's weight [O, C, *window]."""
    space = len(weight_shape) - 2
    channels = weight_shape[1] * groups
    if len(x_shape) not in (space + 1, space + 2) or x_shape[-1 - space] != channels:
        raise ValueError(
            f"x: got shape {tuple(x_shape)}, expected {space} spatial axes and {channels} channels "
            f"for a kernel of shape {tuple(weight_shape)} in {groups} groups"
        )
    check_groups(groups, channels, weight_shape[0])


def check_groups(groups: int, channels: int, neurons: int) -> None:
    """Raise a ValueError unless the groups divide channels and neurons."""
    if groups < 1 or channels % groups or neurons % groups:
        raise ValueError(
            f"groups: got {groups}, expected a divisor of {channels} channels and {neurons} neurons"
        )


def check_told(gate: Any, slope: Any) -> None:
    """Raise a ValueError unless exactly one of gate and slope is given."""
    if (gate is None) == (slope is None):
        got = "neither gate nor slope" if gate is None else f"gate {gate!r} and a slope"
        raise ValueError(f"tell_gate: got {got}, expected one of the two")


def check_slope(slope_shape: tuple[int, ...], handle_shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless the slope has the shape of the layer's output."""
    if tuple(slope_shape) != tuple(handle_shape):
        raise ValueError(
            f"slope: got shape {tuple(slope_shape)}, expected {tuple(handle_shape)}, that of the "
            "layer's output and its handle"
        )


def check_bias(bias_shape: tuple[int, ...], neurons: tuple[int, ...]) -> None:
    """Raise a ValueError unless the bias has one entry per neuron."""
    if tuple(bias_shape) != tuple(neurons):
        raise ValueError(
            f"bias: got shape {tuple(bias_shape)}, expected {tuple(neurons)}, one entry per neuron"
        )


def check_sample_weight(s_shape: tuple[int, ...], x_shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless the weights belong to the same samples as the inputs."""
    if len(s_shape) != len(x_shape) or s_shape[:-1] != x_shape[:-1]:
        raise ValueError(
            f"sample_weight: got shape {tuple(s_shape)}, expected {tuple(x_shape[:-1])} followed "
            "by the number of neurons, one weight per sample and neuron"
        )


def check_statistics(statistics: Any, expected: Any) -> None:
    """Raise a ValueError unless tracked statistics have the fields and shapes of the layer's."""
    got, wanted = fields_of(statistics), fields_of(expected)
    if got != wanted:
        raise ValueError(
            f"neuron_stats: got {got}, expected {wanted}; they are of another layer or rule: make "
            "the layer anew"
        )


def fields_of(statistics: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the fields of a record that are there, and those that are shapes."""
    fields = statistics if isinstance(statistics, dict) else statistics._asdict()
    return {
        name: value if isinstance(value, tuple) else tuple(value.shape)
        for name, value in fields.items()
        if value is not None
    }


def check_neuron_mask(dtype: str, *, real: bool) -> None:
    """Raise a TypeError unless the mask is boolean or real."""
    if not real:
        raise TypeError(f"neuron_mask: got dtype {dtype}, expected bool or real weights >= 0")


def check_fits(mask: tuple[int, ...], samples: tuple[int, ...], *, fits: bool) -> None:
    """Raise a ValueError unless a mask has the first axis of a layer's samples."""
    if not fits:
        raise ValueError(
            f"neuron_mask: got shape {tuple(mask)}, expected the axes of the layer's samples, "
            f"{tuple(samples)}, or the first of them; give the mask the batch axes of the model, "
            "and None to layers that do not see the batch"
        )


def check_counts(*, ones: bool) -> None:
    """Raise a ValueError unless a mask that experts see is one of zeros and ones."""
    if not ones:
        raise ValueError(
            "neuron_mask: got weights other than 0 and 1 for a weight of several parts (experts), "
            "expected booleans, because it is not known which row is which sample; give it those"
        )


def check_samples(samples: int, centered: bool) -> None:
    """Raise a ValueError where too few samples leave no statistics."""
    if samples == 0:
        raise ValueError(
            "statistics: got 0 samples, expected at least 1; skip empty batches, or use "
            "gradient='plain'"
        )
    if samples == 1 and centered:
        raise ValueError(
            "statistics: got 1 sample, expected at least 2: a single sample is its own mean, so "
            "the weights would never learn; use a larger batch, or "
            "statistics tracked over several batches: in_neuron_coordinates around the optimizer "
            "and a Rule with decay > 0"
        )
