"""Gradient centralization that knows Flax's layout of a kernel, as an Optax transformation."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnorm.optim.layers import Path, leaves_of
from jaxnorm.precision import at_least_float32

Axes = int | Sequence[int]


def centralize(axes: Mapping[str, Axes] | None = None) -> optax.GradientTransformation:
    """Gradient centralization (Yong et al.): subtract from each neuron's gradient its mean.

        g_W[..., o] <- g_W[..., o] - mean of g_W[..., o] over the inputs (and taps) of neuron o

    Before an optimizer: ``optax.chain(jaxnorm.centralize(), optax.sgd(0.1))``. No statistics, any
    model. The neurons are the last axis of a kernel of Flax, [*window, I, O]; `optax.centralize`
    takes them to be the first, as in PyTorch's [O, I, *window], so for kernels of Flax it subtracts
    the mean over the neurons instead.

    Only leaves called ``kernel`` of two axes or more are changed. All their axes but the last are
    taken to be inputs, which is wrong for kernels with several output axes or with other axes in
    front (`DenseGeneral` in attention, `Einsum`, layers stacked by `scan`, `ConvTranspose` with
    ``transpose_kernel``). Those cannot be told by their shapes: name them.

    Args:
        axes: {pattern: axes of the inputs}, glob patterns of paths like ``"Dense_0/kernel"``, of
            which the first match counts; () leaves a leaf as it is. All others as above. For
            attention: ``{"*/query/kernel": 0, "*/key/kernel": 0, "*/value/kernel": 0}``.

    Returns:
        A transformation without state.

    Raises:
        TypeError: for axes that are no mapping to ints.
        ValueError: at ``init``, for a pattern that matches no leaf, or axes that a leaf has not.

    Transformations: any. Dtypes: the mean is taken in at least float32, updates keep theirs.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxnorm
        >>> tx = jaxnorm.centralize()
        >>> grads = {"kernel": jnp.array([[1.0, 2.0], [3.0, 8.0]]), "bias": jnp.ones(2)}
        >>> updates, _ = tx.update(grads, tx.init(grads))
        >>> updates["kernel"].tolist()
        [[-1.0, -3.0], [1.0, 3.0]]

    References:
        Yong, Huang, Hua, Zhang, ECCV 2020, arXiv 2004.01461.
    """
    patterns = _checked(axes)

    def init(params):
        paths = {path: leaf for path, leaf in leaves_of(params)[0].items()}
        names = ["/".join(path) for path in paths]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"axes: got the pattern {pattern!r}, which matches no parameter, expected one "
                    f"that matches some of {', '.join(names)}"
                )
        for path, leaf in paths.items():
            _inputs(patterns, path, leaf.ndim)
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        leaves, _ = leaves_of(updates)
        new = [_centered(leaf, _inputs(patterns, path, leaf.ndim)) for path, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(updates), new), state

    return optax.GradientTransformation(init, update)


def _checked(axes: Any) -> dict[str, tuple[int, ...]]:
    """Pattern -> axes as a tuple."""
    if axes is not None and not isinstance(axes, Mapping):
        raise TypeError(f"axes: got {axes!r}, expected a dict {{pattern: axes of the inputs}}")
    patterns = {}
    for pattern, value in (axes or {}).items():
        every = value if isinstance(value, Sequence) else (value,)
        if isinstance(value, str) or not all(type(axis) is int for axis in every):
            raise TypeError(f"axes[{pattern!r}]: got {value!r}, expected an int or several")
        patterns[pattern] = tuple(every)
    return patterns


def _inputs(patterns: dict[str, tuple[int, ...]], path: Path, ndim: int) -> tuple[int, ...]:
    """The axes over which the leaf at `path` is centered."""
    name = "/".join(path)
    for pattern, axes in patterns.items():
        if fnmatchcase(name, pattern):
            if not all(-ndim <= axis < ndim for axis in axes):
                raise ValueError(
                    f"axes[{pattern!r}]: got {axes} for {name!r}, expected axes of its {ndim}"
                )
            return axes
    return tuple(range(ndim - 1)) if path[-1:] == ("kernel",) else ()


def _centered(leaf: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    if not axes:
        return leaf
    wide = leaf.astype(at_least_float32(leaf.dtype))
    return (wide - jnp.mean(wide, axis=axes, keepdims=True)).astype(leaf.dtype)
