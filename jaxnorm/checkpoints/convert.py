"""PyTorch's state_dicts as Flax's trees, and back: parameters, statistics, an optimizer's moments.

Pure NumPy, without PyTorch: a state_dict is a mapping of names to arrays. What has a kernel's shape
goes from one layout to the other:

    kernel of                      Flax                 PyTorch
    dense                          [I, O]               [O, I]
    dense, several axes (heads)    [*I, *O]             [O, I], flat
    convolution                    [*window, I / g, O]  [O, I / g, *window]
    transposed convolution         [*window, I, O]      [I, O, *window], the window reversed
      with transpose_kernel        [*window, O, I]      [I, O, *window]
    statistics of all of these     [*window, I, O]      [O, I, *window], reversed as the kernel
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnorm.statistics.tracked import SUMS

Names = Mapping[str, str] | Callable[[str], str]

#: Entries of a layer that are called otherwise in PyTorch.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "negative_slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
#: Fields of a layer's statistics that have the axes of its kernel, and the others.
_AS_KERNEL = ("origin", *SUMS)
_STATISTICS = ("scalars", "center", "mask", *_AS_KERNEL)
#: What Flax has no counterpart of.
_COUNTER = "num_batches_tracked"
_COLLECTIONS = {"params", "batch_stats", "neuron_stats"}


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
            (with it they are laid out as convolutions). None: those that linen named
            ``ConvTranspose_0`` and so on.
        flattened: path of a dense layer -> shape ``(*space, channels)`` of the image that Flax
            flattens before it. PyTorch flattens with the channels first, so the inputs come in
            another order.

    Returns:
        A tree like `like` with arrays of NumPy. Layers that PyTorch computes in one
        (``in_proj_weight``) must be split first. ``num_batches_tracked`` is dropped. Entries of
        other kinds keep name and shape.

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
    arrays = _flat(tree)
    leaves, structure = _leaves(like)
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
        A mapping like `like` with new arrays of NumPy, for `torch.from_numpy`.

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
    wanted = _flat(like)
    leaves, _ = _leaves(tree)
    found = _entries(leaves, wanted, "like", names, conv_transposes, flattened)
    new = {entry.name: entry.to_torch(leaves[path]) for path, entry in found.items()}
    return _nested(like, wanted | new)


class _Entry(NamedTuple):
    """One entry in both frameworks: reshaped, reversed, transposed, reshaped.

    Attributes:
        name: in PyTorch.
        flax: its shape there.
        split: the shape in which axes are reversed and transposed.
        reverse: which axes.
        order: of the axes in PyTorch.
        torch: the shape in PyTorch.
    """

    name: str
    flax: tuple[int, ...]
    split: tuple[int, ...]
    reverse: tuple[int, ...]
    order: tuple[int, ...]
    torch: tuple[int, ...]

    def to_torch(self, value: Any) -> np.ndarray:
        """A new array."""
        value = np.flip(np.asarray(value).reshape(self.split), self.reverse)
        return np.array(value.transpose(self.order).reshape(self.torch), order="C")

    def to_flax(self, value: Any) -> np.ndarray:
        """A new array."""
        value = np.asarray(value).reshape([self.split[a] for a in self.order])
        value = np.flip(value.transpose(np.argsort(self.order)), self.reverse)
        return np.array(value.reshape(self.flax), order="C")


def _entry(
    name: str, leaf: str, flax: Any, torch: Any, transposed: bool, image: tuple[int, ...] | None
) -> _Entry:
    """How an entry of these shapes is converted; its `torch` need not be that which is given."""
    as_kernel = leaf == "kernel" or leaf in _AS_KERNEL
    split = _matrix(flax, torch) if leaf == "kernel" else flax
    axes = tuple(range(len(split)))
    if image and (as_kernel or leaf == "center") and split[:1] == (math.prod(image),):
        *space, channels = range(len(image))
        outputs = axes[1:] and (len(image),)
        ends = (*outputs, channels)
        torch = (*split[1:], *split[:1])
        return _Entry(name, flax, (*image, *split[1:]), (), (*ends, *space), torch)
    if as_kernel and len(split) > 1:
        *window, inputs, outputs = axes
        ends = (inputs, outputs) if transposed and leaf == "kernel" else (outputs, inputs)
        order = (*ends, *window)
        torch = tuple(split[a] for a in order)
        return _Entry(name, flax, split, tuple(window) if transposed else (), order, torch)
    torch = (math.prod(flax),) if leaf in ("bias", "negative_slope") else flax
    return _Entry(name, flax, flax, (), axes, torch)


def _matrix(kernel: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
    """The shape [I, O] of a kernel over several axes that is a matrix in PyTorch."""
    if len(weight) == 2:
        for n in range(len(kernel)):
            ends = (math.prod(kernel[:n]), math.prod(kernel[n:]))
            if ends == weight[::-1]:
                return ends
    return kernel


def _entries(
    leaves: Mapping[str, Any],
    arrays: Mapping[str, Any],
    argument: str,
    names: Names | None,
    conv_transposes: Collection[str] | None,
    flattened: Mapping[str, Sequence[int]] | None,
) -> dict[str, _Entry]:
    """Path in Flax -> entry. Raises unless each side has exactly what the other has."""
    leaves = {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}
    shapes = {
        name: tuple(np.shape(value))
        for name, value in arrays.items()
        if name.rpartition(".")[2] != _COUNTER
    }
    layers = {_ends(path)[0] for path in leaves}
    if conv_transposes is None:
        conv_transposes = [p for p in layers if re.search(r"(^|/)ConvTranspose_\d+$", p)]
    images = {layer: tuple(image) for layer, image in (flattened or {}).items()}
    _known("conv_transposes", conv_transposes, layers)
    _known("flattened", images, layers)
    for layer, image in images.items():
        _check_image(layer, image, leaves)

    def entry(path: str, name: str) -> _Entry:
        layer, leaf = _ends(path)
        how = (layer in conv_transposes, images.get(layer))
        return _entry(name, leaf, leaves[path], shapes[name], *how)

    def fits(path: str, name: str) -> bool:
        return name in shapes and entry(path, name).torch == shapes[name]

    found = _named(leaves, shapes, names, fits)
    if len(set(found.values())) < len(found):
        raise ValueError(
            f"names: got {_twice(found)}, expected each name once; give every layer its own"
        )
    missing, spare = set(found.values()) - shapes.keys(), shapes.keys() - set(found.values())
    if missing or spare:
        got = [f"{_few(spare)}, which no layer of Flax has"] if spare else []
        got += [f"no {_few(missing)}"] if missing else []
        raise ValueError(
            f"{argument}: got {' and '.join(got)}, expected every entry once; give the layers "
            f"their PyTorch names, names={{path: name}}, with the paths {_few(layers)}"
        )
    result = {path: entry(path, name) for path, name in found.items()}
    for path, each in result.items():
        if each.torch != shapes[each.name]:
            raise ValueError(
                f"{argument}: got shape {shapes[each.name]} for {each.name!r}, expected "
                f"{each.torch} for {path!r} of shape {each.flax} in Flax; see names=, and "
                "conv_transposes= for a transposed convolution"
            )
    return result


def _check_image(layer: str, image: tuple[int, ...], leaves: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the layer has as many inputs as the image has entries."""
    own = {_ends(path)[1]: shape for path, shape in leaves.items() if _ends(path)[0] == layer}
    inputs = own["kernel"][:-1] if "kernel" in own else own.get("center", ())
    if math.prod(image) not in [math.prod(inputs[: n + 1]) for n in range(len(inputs))]:
        raise ValueError(
            f"flattened: got {image} for {layer!r} with inputs {inputs}, expected the shape "
            "(*space, channels) of the image before a dense layer, with as many entries as inputs"
        )


def _named(
    leaves: dict[str, Any],
    shapes: dict[str, Any],
    names: Names | None,
    fits: Callable[[str, str], bool],
) -> dict[str, str]:
    """Path of an entry in Flax -> its name in PyTorch."""
    if names is not None:
        return {path: _renamed(path, names) for path in leaves}
    same = {path: _renamed(path, {}) for path in leaves}
    if set(same.values()) == shapes.keys():
        return same
    layers: dict[str, list[str]] = {}
    for path in leaves:
        layers.setdefault(_ends(path)[0], []).append(path)
    modules: dict[str, set[str]] = {}
    for name in shapes:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, set()).add(leaf)
    candidates = {
        layer: [
            module
            for module, entries in modules.items()
            if {_leaf(path) for path in paths} == entries
            and all(fits(path, _joined(module, _leaf(path))) for path in paths)
        ]
        for layer, paths in layers.items()
    }
    unclear = {layer: found for layer, found in candidates.items() if len(found) != 1}
    if unclear or len(candidates) != len(modules):
        hints = [f"{layer!r} fits {_few(found) or 'none'}" for layer, found in unclear.items()]
        hint = hints[0] if hints else f"{len(candidates)} layers, {len(modules)} names"
        raise ValueError(
            f"names: got None, where shapes alone do not say which layer is which ({hint}), "
            f"expected {{path: name}} for the paths {_few(layers)} and the PyTorch names "
            f"{_few(modules)}, or a function"
        )
    return {
        path: _joined(candidates[layer][0], _leaf(path))
        for layer, paths in layers.items()
        for path in paths
    }


def _renamed(path: str, names: Names) -> str:
    """The PyTorch name of an entry."""
    layer = _ends(path)[0]
    if callable(names):
        return _joined(names(layer), _leaf(path))
    if _without(path) in names:
        return names[_without(path)]
    parts = layer.split("/") if layer else []
    for n in range(len(parts), -1, -1):
        start = "/".join(parts[:n])
        if start in names:
            return ".".join(p for p in (names[start], *parts[n:], _leaf(path)) if p)
    return ".".join((*parts, _leaf(path)))


def _known(what: str, given: Collection[str], paths: Collection[str]) -> None:
    """Raise a ValueError for a path that is that of nothing."""
    for path in given:
        if path not in paths:
            raise ValueError(
                f"{what}: got {path!r}, expected a path of the Flax tree: {_few(set(paths) - {''})}"
            )


def _without(path: str) -> str:
    """A path without the collection of linen, and without what a layer calls its statistics."""
    first, _, rest = path.partition("/")
    if first in _COLLECTIONS and rest:
        path = rest
    parts = path.split("/")
    if parts[-1] in _STATISTICS and parts[-2:-1] in (["neuron_stats"], ["statistics"]):
        del parts[-2]
    return "/".join(parts)


def _ends(path: str) -> tuple[str, str]:
    """(layer, entry)."""
    layer, _, leaf = _without(path).rpartition("/")
    return layer, leaf


def _leaf(path: str) -> str:
    """What an entry is called in PyTorch, without the layer."""
    leaf = _ends(path)[1]
    return _LEAVES.get(leaf, leaf)


def _joined(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _leaves(tree: Any) -> tuple[dict[str, Any], Any]:
    """(path -> array, structure), without the boxes of Flax (`Partitioned`, `nnx.Variable`)."""
    every, structure = jax.tree_util.tree_flatten_with_path(tree)

    def joined(path):
        names = ((getattr(key, a, None) for a in ("key", "name", "idx")) for key in path)
        boxed = (getattr(key, "name", None) == "value" for key in path)
        return "/".join(
            str(next(n for n in name if n is not None))
            for name, box in zip(names, boxed, strict=True)
            if not box
        )

    return {joined(path): leaf for path, leaf in every}, structure


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{name: array} of a mapping that may be nested."""
    flat = {}
    for key, value in tree.items():
        name = _joined(prefix, str(key))
        if isinstance(value, Mapping):
            flat |= _flat(value, name)
        else:
            flat[name] = value
    return flat


def _nested(like: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{name: array}, nested as another mapping."""
    return {
        key: _nested(value, arrays, _joined(prefix, str(key)))
        if isinstance(value, Mapping)
        else np.asarray(arrays[_joined(prefix, str(key))]).copy()
        for key, value in like.items()
    }


def _twice(found: Mapping[str, str]) -> str:
    names = list(found.values())
    twice = next(name for name in names if names.count(name) > 1)
    return f"{twice!r} for {_few(path for path, name in found.items() if name == twice)}"


def _few(names: Any) -> str:
    """A few of them, as a list to be read."""
    names = sorted(map(repr, names))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
