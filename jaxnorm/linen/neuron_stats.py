"""The variable collection ``neuron_stats`` of linen layers."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm.conversion.foreign import is_array, without_leaks
from jaxnorm.conversion.trace import Marks, is_turned, turned_in
from jaxnorm.statistics.tracked import Statistics

COLLECTION = "neuron_stats"
#: What a layer's variable in it is called.
_NAME = "statistics"

Path = tuple[str, ...]
Shape = tuple[int, ...]

#: In the key of every `jax.jit` cache: what `flax.linen.jit` has traced before must be seen again.
_watching = jax.make_user_context(default_value=None)


class _Seen(NamedTuple):
    """A layer as it is called.

    Attributes:
        record: what it would record.
        kernel: the shape of its kernel.
        given: the shapes of what it is given, if anything.
        turned: whether its kernel is mapped along another axis than the first.
    """

    record: Statistics
    kernel: Shape
    given: list[Shape] | None
    turned: bool


class _Local(threading.local):
    """The layers that `init_statistics` sees, in each thread, and their kernels."""

    seen: dict[Path, _Seen] | None = None
    marks: Marks = Marks()


_LOCAL = _Local()


def statistics_of(layer: nn.Module, empty: Callable[[], Statistics]) -> Statistics | None:
    """A layer's statistics, or None; new ones where the collection may be written.

    Not in ``model.init``, which gives Flax's variables and no more.
    """
    found = layer.variables.get(COLLECTION)
    # Something else there is refused where its shapes are checked.
    given = found.get(_NAME, dict(found)) if found else None
    if _LOCAL.seen is not None and not layer.is_initializing():
        kernel = nn.meta.unbox(layer.variables["params"]["kernel"])
        _LOCAL.marks.kernel("/".join(layer.path), kernel)
        shapes = None if given is None else _shapes(given)
        seen = _Seen(jax.eval_shape(empty), jnp.shape(kernel), shapes, is_turned(kernel))
        _LOCAL.seen.setdefault(layer.path, seen)
        return None
    if found or layer.is_initializing() or not layer.is_mutable_collection(COLLECTION):
        return given
    new = empty()
    layer.put_variable(COLLECTION, _NAME, new)
    return new


def init_statistics(model: Any, variables: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The collection ``neuron_stats`` of a model before its first step.

    Where it is among the variables, the gradient with respect to it is the statistics of the batch:
    sums, that add up over calls, micro-batches and devices as gradients do. Nothing is written in
    the forward pass, so nothing has to be ``mutable``. Merge the gradient with
    `jaxnorm.update_statistics`, or let `TrainState` do it.

    Args:
        model: a module of our layers, or an apply function (that of `neuronwise`).
        variables: of ``model.init``, as ``model.apply`` takes them.
        *args: the other arguments of ``model.apply``: example inputs, arrays or
            `jax.ShapeDtypeStruct`. Nothing is computed with them.
        **kwargs: as ``model.apply`` takes them (``rngs``, ``mutable``, ``train``, ``method``), with
            arrays or `jax.ShapeDtypeStruct` too, as `find_gates`.

    Returns:
        {layer: {"statistics": zeros}}; see `jaxnorm.statistics.tracked.Statistics`.

    Raises:
        ValueError: for a model in which no layer records statistics, and for one that does not
            take the collection to a layer as it takes the parameters.

    Transformations: may be called inside any. Flax's lifted ones take along what they are told to:
    list the collection beside the parameters, on the same axes, the leading ones:
    ``variable_axes={"params": 0, "neuron_stats": 0}`` of `flax.linen.scan` and `vmap`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Dense(3, gate="relu")
        >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 5)))
        >>> stats = jaxnorm.linen.init_statistics(layer, variables, jnp.ones((2, 5)))
        >>> stats["statistics"].second.shape  # of a model: stats["Dense_0"]["statistics"].second
        (5, 3)
    """
    apply = model.apply if isinstance(model, nn.Module) else model
    variables = {name: tree for name, tree in variables.items() if name != COLLECTION}
    params = variables.get("params", {})
    layers, records, seen = {}, {}, _watch(apply, variables, args, kwargs)
    # Of modules that share one trace under `flax.linen.jit` the first is seen that has none yet.
    while new := seen.keys() - layers.keys():
        for path in sorted(new):
            layers[path] = seen[path]
            records[path] = _zeros(path, seen[path], _kernel_at(params, path))
        try:
            seen = _watch(apply, {**variables, COLLECTION: _nested(records)}, args, kwargs)
        except Exception as error:
            raise ValueError(
                f"{COLLECTION}: got {type(error).__name__} from the model as soon as they are "
                f"among its variables, expected them on the axes of the parameters; {_ON_AXES}"
            ) from error
    for path, layer in seen.items():
        if layer.given is None and _kernel_at(params, path) is not None:
            raise ValueError(
                f"{COLLECTION}: got none in the layer {_shown(path)}, expected them where its "
                f"parameters are; {_ON_AXES}, or leave the layer out with gates="
            )
        if layer.given is None:  # a model of its own inside, on parameters that are not these
            del records[path]
        elif layer.given != _shapes(layer.record):
            raise ValueError(
                f"{COLLECTION}: got arrays of shapes {layer.given} in the layer {_shown(path)}, "
                f"expected {_shapes(layer.record)}, those of one layer; {_ON_AXES}"
            )
    if not records:
        raise ValueError(
            "init_statistics: got a model in which no layer records statistics, expected at least "
            "one; use the layers of jaxnorm.linen, or jaxnorm.linen.neuronwise(model), with "
            "gradient='plain_with_statistics' or the default"
        )
    return _nested(records)


_ON_AXES = (
    'in a lifted transformation list them beside the parameters: variable_axes={"params": 0, '
    '"neuron_stats": 0} (flax.linen.scan, vmap), variable_axes={"params": None, "neuron_stats": '
    'None} (vmap, the same weights), variable_broadcast=["params", "neuron_stats"] (scan, the same '
    'weights), variables=["params", "neuron_stats"] (jit, remat)'
)


def _watch(apply: Any, variables: Any, args: tuple, kwargs: dict) -> dict[Path, _Seen]:
    """The layers that record statistics, as they are called."""
    leaves, structure = jax.tree.flatten((variables, args, kwargs))
    # What is no array (a flag) stays as it is.
    traced = {n: a for n, a in enumerate(leaves) if is_array(a)}
    seen: dict[Path, _Seen] = {}
    key = object()

    def run(traced):
        full = structure.unflatten(traced.get(n, a) for n, a in enumerate(leaves))
        variables, args, kwargs = full
        apply(variables, *args, **kwargs)

    def anew(run, args, kwargs, call):
        if call.module.scope is None:
            return run(*args, **kwargs)
        # What `flax.linen.jit` has traced inside one module must not run inside another like it.
        with _watching((key, call.module.path)):
            return run(*args, **kwargs)

    outer, _LOCAL.seen = _LOCAL.seen, seen
    try:
        with _watching(key), nn.intercept_methods(anew), without_leaks(apply, args, kwargs):
            program = jax.make_jaxpr(run)(traced)
    finally:
        _LOCAL.seen = outer
    turned = turned_in(program)
    return {
        path: layer._replace(turned=layer.turned or "/".join(path) in turned)
        for path, layer in seen.items()
    }


def _zeros(path: Path, layer: _Seen, stacked: Shape | None) -> Any:
    """A layer's record before the first step, stacked as a lifted transformation stacks kernels."""
    stack = () if stacked is None else stacked[: len(stacked) - len(layer.kernel)]
    if layer.turned or stacked not in (None, (*stack, *layer.kernel)):
        raise ValueError(
            f"params: got a kernel of shape {stacked} for the layer {_shown(path)}, which is "
            f"called with one of shape {layer.kernel}, expected the same, stacked along the "
            'leading axes; use variable_axes={"params": 0, "neuron_stats": 0}, or leave the layer '
            "out with gates="
        )
    return jax.tree.map(lambda a: jnp.zeros((*stack, *a.shape), a.dtype), layer.record)


def _kernel_at(params: Any, path: Path) -> Shape | None:
    """The shape of the kernel of the layer at a path of the parameters, if there is one."""
    for name in (*path, "kernel"):
        if not isinstance(params, Mapping) or name not in params:
            return None
        params = params[name]
    return tuple(jnp.shape(nn.meta.unbox(params)))


def _nested(records: dict[Path, Any]) -> dict[str, Any]:
    """Path -> record as a collection."""
    collection: dict[str, Any] = {}
    for path, record in records.items():
        at = collection
        for name in path:
            at = at.setdefault(name, {})
        at[_NAME] = record
    return collection


def _shapes(tree: Any) -> list[Shape]:
    return [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)]


def _shown(path: Path) -> str:
    return repr("/".join(path)) if path else "at the root"
