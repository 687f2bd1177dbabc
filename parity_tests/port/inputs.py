"""The inputs of both models, from what the user gives.

The rule for channels, `layout="auto"`: inputs are given as PyTorch takes them. A float array that
goes, as it is, into a convolution or a normalization over channels of the PyTorch model, and every
float array of rank 4 and more of a model with convolutions, is an image ``[N, C, *space]``; Flax
gets it as ``[N, *space, C]``. All else (tokens, masks, sequences) is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.port.errors import CannotCompare
from parity_tests.port.layout import channels_last, convert_tree
from parity_tests.port.sides.base import Inputs, Run, is_float

#: Modules of PyTorch that read [N, C, *space].
CHANNELS_FIRST = (
    *(f"Conv{n}d" for n in (1, 2, 3)),
    *(f"ConvTranspose{n}d" for n in (1, 2, 3)),
    *(f"BatchNorm{n}d" for n in (1, 2, 3)),
    *(f"InstanceNorm{n}d" for n in (1, 2, 3)),
    *(f"{kind}Pool{n}d" for kind in ("Max", "Avg", "AdaptiveAvg") for n in (1, 2, 3)),
    "GroupNorm",
)
LAYOUTS = ("auto", "channels", "same")


def read(inputs: Any, dtype: str, argument: str = "inputs") -> Inputs:
    """Inputs as both sides take them, floats in one dtype, everything finite.

    Args:
        inputs: an array; a tuple or list of positional ones; a dict of named ones.
        dtype: of the floats.
        argument: what errors call them.
    """

    def convert(name: str, value: np.ndarray) -> np.ndarray:
        if value.dtype == object:
            raise CannotCompare(f"{argument}: got objects for {name!r}, expected numbers")
        if is_float(value):
            if not np.isfinite(value.astype(np.float64)).all():
                raise CannotCompare(
                    f"{argument}: got {int((~np.isfinite(value)).sum())} entries of {name!r} that "
                    "are not finite, expected finite numbers; mask with booleans"
                )
            return np.array(value, dtype=dtype)
        return np.array(value)

    def arrays(tree: Any) -> Any:
        if isinstance(tree, (tuple, list)):
            return type(tree)(map(arrays, tree))
        if isinstance(tree, Mapping):
            return {str(k): arrays(v) for k, v in tree.items()}
        if isinstance(tree, (bool, int, float, str)) or tree is None:
            return tree  # a flag of the model
        if hasattr(tree, "detach"):
            tree = tree.detach().cpu().numpy()
        return np.asarray(tree)

    tree = arrays(inputs)
    if isinstance(tree, dict):
        found = Inputs((), convert_tree(tree, convert))
    elif isinstance(tree, (tuple, list)):
        found = Inputs(tuple(convert_tree(list(tree), convert)))
    else:
        found = Inputs((convert("0", tree),) if isinstance(tree, np.ndarray) else (tree,))
    if not _arrays(found):
        raise CannotCompare(
            f"{argument}: got no array, expected an array, a tuple of positional inputs or a "
            "dict of named ones"
        )
    return found


def _arrays(inputs: Inputs) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def note(name: str, value: np.ndarray) -> np.ndarray:
        found[name] = value
        return value

    convert_tree(list(inputs.positional), note)
    convert_tree(dict(inputs.keyword), note)
    return found


def images(inputs: Inputs, run: Run, layout: str | Mapping[str, str]) -> dict[str, str]:
    """Name of each array among the inputs -> "channels" or "same".

    Args:
        inputs: as PyTorch takes them.
        run: of PyTorch, on them.
        layout: "auto", "channels", "same", or one of these for each name.
    """
    arrays = _arrays(inputs)
    told = {name: layout for name in arrays} if isinstance(layout, str) else dict(layout)
    for name, value in told.items():
        if value not in LAYOUTS or name not in arrays:
            raise CannotCompare(
                f"layout: got {value!r} for {name!r}, expected one of {', '.join(LAYOUTS)} for "
                f"some of {', '.join(arrays)}"
            )
    readers = [call for call in run.calls if call.kind in CHANNELS_FIRST]
    convolutions = any("Conv" in call.kind and call.kind != "Conv1D" for call in run.calls)
    found = {}
    for name, array in arrays.items():
        kind = told.get(name, "auto")
        if kind == "auto":
            read_as_image = any(
                value.shape == array.shape and np.array_equal(value, array)
                for call in readers
                for value in call.arguments.values()
            )
            image = is_float(array) and array.ndim > 2
            image = image and (read_as_image or (array.ndim > 3 and convolutions))
            kind = "channels" if image else "same"
        elif kind == "channels" and array.ndim < 3:
            raise CannotCompare(
                f"layout: got 'channels' for {name!r} of shape {array.shape}, expected a rank of "
                "at least 3, [N, C, *space]"
            )
        found[name] = kind
    return found


def for_flax(inputs: Inputs, layouts: Mapping[str, str]) -> Inputs:
    """The inputs with images channels last."""

    def convert(name: str, value: np.ndarray) -> np.ndarray:
        if layouts.get(name) == "channels":
            return np.ascontiguousarray(channels_last(value))
        return value

    positional = convert_tree(list(inputs.positional), convert)
    return Inputs(tuple(positional), convert_tree(dict(inputs.keyword), convert))


def compared(torch: Inputs, flax: Inputs) -> dict[str, str]:
    """Which inputs that are given for both sides are the same, by their shapes."""
    theirs, ours = _arrays(torch), _arrays(flax)
    found = {}
    for name, array in theirs.items():
        if name in ours and array.shape == ours[name].shape:
            found[name] = "same"
        elif name in ours and channels_last(array).shape == ours[name].shape:
            found[name] = "channels"
    return found
