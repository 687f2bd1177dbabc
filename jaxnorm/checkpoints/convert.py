"""PyTorch's state_dicts as Flax's trees, and back: parameters, statistics, an optimizer's moments.

Pure NumPy, without PyTorch: a state_dict is a mapping of names to arrays. names.py says which entry
is which, layout.py where its numbers go.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxnorm.checkpoints.layout import AS_KERNEL, KERNELS, Entry, lay_out
from jaxnorm.checkpoints.names import (
    Names,
    check_known,
    check_one_to_one,
    flatten,
    layer_and_leaf,
    leaves_of,
    match_names,
    nest,
    normed,
)


def from_torch(
    tree: Mapping[str, Any],
    like: Any,
    *,
    names: Names | None = None,
    conv_transposes: Collection[str] | None = None,
    flattened: Mapping[str, Sequence[int]] | None = None,
) -> Any:
    """Convert a PyTorch state_dict to Flax.

    Every entry is used exactly once, and its shape must fit; nothing is guessed. Values, dtypes and
    the architecture (epsilons, paddings, the default of a momentum) stay what they are.

    Args:
        tree: name -> array, or tensor on the CPU: ``model.state_dict()``; the statistics
            ``optimizer.state_dict()["neuron_stats"]`` of torchnorm, nested by layer; both
            (``|``); or anything under the names of the parameters, such as the moments of an
            optimizer (``exp_avg``, ``momentum_buffer``).
        like: the Flax tree that is wanted; only its paths and shapes matter (`jax.eval_shape` will
            do). Variables of linen, or one collection of them: ``params``, ``batch_stats``,
            ``neuron_stats`` (of `jaxnorm.linen.init_statistics`); the `nnx.State` of such
            variables, or its pure dict; a moment of Optax (``mu``, ``nu``, ``trace``).
        names: the PyTorch name of each layer. {path in Flax: name}, where a path or the beginning
            of one stands for all layers below it, such as ``{"": "module"}``, and
            an entry's own path for that entry; or path -> name as a function. None: the same name,
            "." for "/"; or, if the layers are not called so, the one assignment that the shapes
            admit.
        conv_transposes: the paths of the transposed convolutions without ``transpose_kernel``
            (with it they are laid out as convolutions), ``()`` if there are none. None: those that
            linen named ``ConvTranspose_0`` and so on; needed where another name could be that of
            one and no shape tells.
        flattened: path of a dense layer -> shape ``(*space, channels)`` of the image that Flax
            flattens before it, ``{}`` if there is none. PyTorch flattens with the channels first,
            so the inputs come in another order. Needed where a dense layer could read an image.

    Returns:
        A tree like `like` with arrays of NumPy. Layers that PyTorch computes in one
        (``in_proj_weight``) must be split first, weights that are not [O, I] (``Conv1D`` of
        transformers) transposed. ``num_batches_tracked`` is dropped, unless the layer of Flax has
        a ``count``. Of weight normalization (``parametrizations.weight.original0`` and 1) both
        entries belong to the layer inside. Entries of other kinds keep name and shape.

    Raises:
        ValueError: for names or entries that do not fit, and for names that had to be guessed.

    Transformations: none; this is for concrete arrays.

    Example:
        >>> import numpy as np
        >>> import jaxnorm
        >>> state_dict = {"fc.weight": np.ones((3, 5)), "fc.bias": np.zeros(3)}
        >>> like = {"Dense_0": {"kernel": np.zeros((5, 3)), "bias": np.zeros(3)}}
        >>> params = jaxnorm.from_torch(state_dict, like, names={"Dense_0": "fc"})
        >>> params["Dense_0"]["kernel"].shape
        (5, 3)
    """
    arrays = flatten(tree)
    leaves, structure = leaves_of(like)
    found = _entries(leaves, arrays, "tree", names, conv_transposes, flattened)
    new = [found[path].to_flax(arrays[found[path].name]) for path in leaves]
    return jax.tree.unflatten(structure, new)


def to_torch(
    tree: Any,
    like: Mapping[str, Any],
    *,
    names: Names | None = None,
    conv_transposes: Collection[str] | None = None,
    flattened: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Convert Flax's parameters, statistics or moments to a PyTorch state_dict: `from_torch`, back.

    Args:
        tree: variables, a collection, an `nnx.State` or a moment, as in `from_torch`.
        like: the mapping that is wanted, flat or nested; only its names and shapes matter, and the
            value of ``num_batches_tracked``, which Flax does not count.
        names: as in `from_torch`, from Flax to PyTorch.
        conv_transposes: as in `from_torch`.
        flattened: as in `from_torch`.

    Returns:
        A mapping like `like` with new arrays of NumPy, for `torch.from_numpy`, which takes no
        bfloat16: of that float32, with the same values.

    Raises:
        ValueError: as `from_torch`.

    Example:
        >>> import numpy as np
        >>> import jaxnorm
        >>> params = {"Conv_0": {"kernel": np.ones((3, 3, 4, 8))}}
        >>> state_dict = jaxnorm.to_torch(params, {"conv.weight": np.zeros((8, 4, 3, 3))})
        >>> state_dict["conv.weight"].shape
        (8, 4, 3, 3)
    """
    wanted = flatten(like)
    leaves, _ = leaves_of(tree)
    found = _entries(leaves, wanted, "like", names, conv_transposes, flattened)
    new = {entry.name: entry.to_torch(leaves[path]) for path, entry in found.items()}
    return nest(like, wanted | new)


def _entries(
    leaves: Mapping[str, Any],
    arrays: Mapping[str, Any],
    argument: str,
    names: Names | None,
    conv_transposes: Collection[str] | None,
    flattened: Mapping[str, Sequence[int]] | None,
) -> dict[str, Entry]:
    """Path in Flax -> entry. Raises unless each side has exactly what the other has."""
    leaves = {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}
    aliases = normed(leaves)
    leaves = {aliases.get(path, path): shape for path, shape in leaves.items()}
    shapes = {name: tuple(np.shape(value)) for name, value in arrays.items()}
    layers = {layer_and_leaf(path)[0] for path in leaves}
    told, transposes = conv_transposes is not None, conv_transposes or ()
    if not told:
        transposes = [p for p in layers if re.search(r"(^|/)ConvTranspose_\d+$", p)]
    images = {layer: tuple(image) for layer, image in (flattened or {}).items()}
    check_known("conv_transposes", transposes, layers)
    check_known("flattened", images, layers)
    for layer, image in images.items():
        _check_image(layer, image, leaves)

    def entry(path: str, name: str) -> Entry:
        layer, leaf = layer_and_leaf(path)
        flax, torch, transposed = leaves[path], shapes[name], layer in transposes
        return lay_out(name, leaf, flax, torch, transposed, images.get(layer))

    def fits(path: str, name: str) -> bool:
        return name in shapes and entry(path, name).torch == shapes[name]

    found = match_names(leaves, shapes, names, fits)
    check_one_to_one(argument, found, shapes)
    result = {path: entry(path, name) for path, name in found.items()}
    for path, each in result.items():
        if each.torch != shapes[each.name]:
            raise ValueError(
                f"{argument}: got shape {shapes[each.name]} for {each.name!r}, expected "
                f"{each.torch} for {path!r} of shape {each.flax} in Flax; see names=, and "
                "conv_transposes= for a transposed convolution"
            )
    entries = list(result.items())
    if not told:
        _check_no_conv_transpose(entries)
    if flattened is None:
        _check_no_image(entries)
    original = {alias: path for path, alias in aliases.items()}
    return {original.get(path, path): each for path, each in result.items()}


def _check_no_conv_transpose(entries: Sequence[tuple[str, Entry]]) -> None:
    """Raise a ValueError for a convolution that may be transposed, for all that shapes say."""
    kernels = {layer_and_leaf(path)[0] for path, _ in entries if _leaf(path) in KERNELS}
    for path, entry in entries:
        layer, shape = layer_and_leaf(path)[0], entry.flax
        if (
            len(shape) < 3
            or len(entry.torch) < 3
            or re.search(r"(^|/)Conv(Transpose)?_\d+$", layer)
        ):
            continue
        # Of the statistics only the window is reversed, which the kernel's shape may rule out.
        alone = _leaf(path) in AS_KERNEL and layer not in kernels and math.prod(shape[:-2]) > 1
        if alone or (_leaf(path) in KERNELS and shape[-1] == shape[-2]):
            raise ValueError(
                f"conv_transposes: got None, where {layer!r} with {path!r} of shape {shape} may be "
                "a convolution or a transposed one, expected the paths of the transposed ones, () "
                "if there are none"
            )


def _check_no_image(entries: Sequence[tuple[str, Entry]]) -> None:
    """Raise a ValueError for a dense layer that may read an image, for all that shapes say."""
    weights = {layer_and_leaf(p)[0]: e.torch for p, e in entries if _leaf(p) in KERNELS}
    outputs = {torch[0] for torch in weights.values()}
    channels = {torch[0] for torch in weights.values() if len(torch) > 2} - {1}
    for layer, torch in weights.items():
        several = [c for c in channels if torch[1] % c == 0]
        if len(torch) == 2 and several and torch[1] not in outputs:
            raise ValueError(
                f"flattened: got None, where {layer!r} with {torch[1]} inputs may read a flattened "
                f"image of {max(several)} channels, which PyTorch flattens in another order, "
                "expected {path: (*space, channels)}, {} if there is none"
            )


def _leaf(path: str) -> str:
    return layer_and_leaf(path)[1]


def _check_image(layer: str, image: tuple[int, ...], leaves: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the layer has as many inputs as the image has entries."""
    ends = {layer_and_leaf(path): shape for path, shape in leaves.items()}
    inputs = ends.get((layer, "center"), ())
    for leaf in KERNELS:
        inputs = ends[layer, leaf][:-1] if (layer, leaf) in ends else inputs
    if math.prod(image) not in [math.prod(inputs[: n + 1]) for n in range(len(inputs))]:
        raise ValueError(
            f"flattened: got {image} for {layer!r} with inputs {inputs}, expected the shape "
            "(*space, channels) of the image before a dense layer, with as many entries as inputs"
        )
