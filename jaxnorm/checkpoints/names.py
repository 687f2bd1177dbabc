"""Which entry of a Flax tree is which of a PyTorch state_dict."""

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from jaxnorm.checkpoints.layout import AS_KERNEL, DIRECTION, LENGTH

Names = Mapping[str, str] | Callable[[str], str]

#: Entries of a layer that are called otherwise in PyTorch.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "negative_slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "count": "num_batches_tracked",
    LENGTH: "parametrizations.weight.original0",
    DIRECTION: "parametrizations.weight.original1",
}
#: What PyTorch counts, and Flax only for an average over all batches.
COUNTER = _LEAVES["count"]
#: Fields of a layer's statistics.
_STATISTICS = ("scalars", "parts", "center", "mask", *AS_KERNEL)
_COLLECTIONS = {"params", "batch_stats", "neuron_stats"}


def match_names(
    leaves: dict[str, Any],
    shapes: dict[str, Any],
    names: Names | None,
    fits: Callable[[str, str], bool],
) -> dict[str, str]:
    """Path of an entry in Flax -> its name in PyTorch; `fits` says whether the shapes do."""
    if names is not None:
        return {path: rename(path, names) for path in leaves}
    same = {path: rename(path, {}) for path in leaves}
    if set(same.values()) == shapes.keys() - _uncounted(same.values(), shapes):
        return same
    layers: dict[str, list[str]] = {}
    for path in leaves:
        layers.setdefault(layer_and_leaf(path)[0], []).append(path)
    modules: dict[str, set[str]] = {}
    for name in shapes:
        module, leaf = _split(name)
        modules.setdefault(module, set()).add(leaf)
    candidates = {
        layer: [
            module
            for module, entries in modules.items()
            if {_leaf(path) for path in paths} in (entries, entries - {COUNTER})
            and all(fits(path, _join(module, _leaf(path))) for path in paths)
        ]
        for layer, paths in layers.items()
    }
    unclear = {layer: found for layer, found in candidates.items() if len(found) != 1}
    if unclear or len(candidates) != len(modules):
        hints = [f"{layer!r} fits {few(found) or 'none'}" for layer, found in unclear.items()]
        hint = hints[0] if hints else f"{len(candidates)} layers, {len(modules)} names"
        raise ValueError(
            f"names: got None, where shapes alone do not say which layer is which ({hint}), "
            f"expected {{path: name}} for the paths {few(layers)} and the PyTorch names "
            f"{few(modules)}, or a function"
        )
    return {
        path: _join(candidates[layer][0], _leaf(path))
        for layer, paths in layers.items()
        for path in paths
    }


def rename(path: str, names: Names) -> str:
    """The PyTorch name of an entry."""
    layer = layer_and_leaf(path)[0]
    if callable(names):
        return _join(names(layer), _leaf(path))
    if _without(path) in names:
        return names[_without(path)]
    parts = layer.split("/") if layer else []
    for n in range(len(parts), -1, -1):
        start = "/".join(parts[:n])
        if start in names:
            return ".".join(p for p in (names[start], *parts[n:], _leaf(path)) if p)
    return ".".join((*parts, _leaf(path)))


def check_one_to_one(argument: str, found: dict[str, str], shapes: Mapping[str, Any]) -> None:
    """Raise a ValueError unless each name is that of one entry."""
    names = list(found.values())
    twice = [name for name in names if names.count(name) > 1][:1]
    if twice:
        paths = few(path for path, name in found.items() if name == twice[0])
        raise ValueError(
            f"names: got {twice[0]!r} for {paths}, expected each name once; give every layer its "
            "own"
        )
    missing = set(names) - shapes.keys()
    spare = shapes.keys() - set(names) - _uncounted(names, shapes)
    if missing or spare:
        got = [f"{few(spare)}, which no layer of Flax has"] if spare else []
        got += [f"no {few(missing)}"] if missing else []
        layers = few({layer_and_leaf(path)[0] for path in found})
        raise ValueError(
            f"{argument}: got {' and '.join(got)}, expected every entry once; give the layers "
            f"their PyTorch names, names={{path: name}}, with the paths {layers}"
        )


def _uncounted(names: Collection[str], shapes: Collection[str]) -> set[str]:
    """The counters of PyTorch that Flax has no counterpart of."""
    return {name for name in shapes if _split(name)[1] == COUNTER and name not in names}


def _split(name: str) -> tuple[str, str]:
    """The module and the entry of a name in PyTorch."""
    module, parametrized, leaf = name.partition("parametrizations.")
    if parametrized:
        return module.rstrip("."), parametrized + leaf
    module, _, leaf = name.rpartition(".")
    return module, leaf


def normed(paths: Collection[str]) -> dict[str, str]:
    """The two entries of each layer with weight normalization, as entries of that layer.

    Flax has the length in the module around the layer: ``WeightNorm_0/Dense_0/kernel/scale`` for
    ``Dense_0/kernel``, or, in ours of nnx, ``scales/kernel/scale`` for ``layer_instance/kernel``.
    """
    found = {}
    for path in paths:
        if not path.endswith("/kernel/scale"):
            continue
        parts = path.removesuffix("/scale").split("/")
        for n, instead in itertools.product(range(len(parts)), ([], ["layer_instance"])):
            kernel = "/".join([*parts[:n], *instead, *parts[n + 1 :]])
            if kernel in paths or (n == 0 and (kernel := "/".join(parts)) in paths):
                layer = kernel.removesuffix("kernel")
                found |= {path: layer + LENGTH, kernel: layer + DIRECTION}
                break
    return found


def check_known(what: str, given: Collection[str], paths: Collection[str]) -> None:
    """Raise a ValueError for a path that is that of nothing."""
    for path in given:
        if path not in paths:
            raise ValueError(
                f"{what}: got {path!r}, expected a path of the Flax tree: {few(set(paths) - {''})}"
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


def layer_and_leaf(path: str) -> tuple[str, str]:
    """The path of an entry's layer, and what it is called in there."""
    layer, _, leaf = _without(path).rpartition("/")
    return layer, leaf


def _leaf(path: str) -> str:
    """What an entry is called in PyTorch, without the layer."""
    leaf = layer_and_leaf(path)[1]
    return _LEAVES.get(leaf, leaf)


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def leaves_of(tree: Any) -> tuple[dict[str, Any], Any]:
    """(path -> array, structure), without the boxes of Flax (`Partitioned`, `nnx.Variable`)."""
    every, structure = jax.tree_util.tree_flatten_with_path(tree)

    def joined(path):
        inner = [key for key in path if getattr(key, "name", None) != "value"]
        names = ((getattr(key, a, None) for a in ("key", "name", "idx")) for key in inner)
        return "/".join(str(next(n for n in name if n is not None)) for name in names)

    return {joined(path): leaf for path, leaf in every}, structure


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{name: array} of a mapping that may be nested."""
    flat = {}
    for key, value in tree.items():
        name = _join(prefix, str(key))
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        else:
            flat[name] = value
    return flat


def nest(like: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{name: array}, nested as another mapping."""
    return {
        key: nest(value, arrays, _join(prefix, str(key)))
        if isinstance(value, Mapping)
        else np.asarray(arrays[_join(prefix, str(key))]).copy()
        for key, value in like.items()
    }


def few(names: Any) -> str:
    """A few of them, as a list to be read."""
    names = sorted(map(repr, names))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
