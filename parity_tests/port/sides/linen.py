"""A model in Flax linen."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from parity_tests.port.errors import CannotCompare
from parity_tests.port.sides import drawn_in_functions
from parity_tests.port.sides.base import Arrays, Inputs, is_float
from parity_tests.port.sides.jax import MODES, JaxSide, Record, compiled, inputs_tree, is_array

#: Collections that are written for a reader and are no states.
WRITTEN = ("intermediates", "perturbations")


class LinenSide(JaxSide):
    """A `flax.linen.Module` with its variables.

    Args:
        model: the module.
        inputs: an example, to learn the shapes.
        variables: its variables; None: of the shapes that it would be initialised with, parameters
            drawn, states as the model initialises them.
        rngs: keys by name, for a model that draws; None: keys for "params" and "dropout".
        dtype: floats of parameters and states are cast to it.
        modes: the argument of the model in train and in eval mode, ``({"train": True}, {"train":
            False})``; None: the argument is recognised by its name.
        seed: of what is drawn.
    """

    framework = "linen"

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        *,
        variables: Any = None,
        rngs: Mapping[str, Any] | None = None,
        dtype: str = "float64",
        modes: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._model, self._dtype = model, np.dtype(dtype)
        self._rngs = dict(rngs) if rngs is not None else {"dropout": jax.random.key(seed)}
        self._modes = modes or mode_arguments(type(model).__call__, inputs)
        self.modes = self._modes[0] != self._modes[1]
        self.kinds: dict[str, str] = {}
        self.fields: dict[str, dict[str, Any]] = {}
        self.drawn = variables is None
        if variables is None:
            variables = self._initial(inputs, seed)
        elif "params" not in variables and not isinstance(variables, Mapping):
            raise CannotCompare(
                f"variables: got {type(variables).__name__}, expected linen variables such as "
                '{"params": ..., "batch_stats": ...}'
            )
        collections = {name: tree for name, tree in variables.items() if name not in WRITTEN}
        every = {
            name: cast(np.asarray(value), dtype)
            for name, value in traverse_util.flatten_dict(_unboxed(collections), sep="/").items()
        }
        start = "params/"
        self.parameters: Arrays = {
            n.removeprefix(start): a for n, a in every.items() if n.startswith(start)
        }
        self.states: Arrays = {n: a for n, a in every.items() if not n.startswith(start)}
        self._collections = [name for name in collections if name != "params"]

    def _initial(self, inputs: Inputs, seed: int) -> dict[str, Any]:
        """Variables of the right shapes; what the model would draw is drawn here, without it."""
        leaves, definition = jax.tree.flatten(inputs_tree(inputs))
        places = [n for n, leaf in enumerate(leaves) if is_array(leaf)]
        rngs = {"params": jax.random.key(seed), **self._rngs}

        def init(arrays: Any) -> Any:
            every = list(leaves)
            for n, array in zip(places, arrays, strict=True):
                every[n] = array
            positional, keyword = jax.tree.unflatten(definition, every)
            with nn.intercept_methods(self._widened):
                return self._model.init(rngs, *positional, **{**keyword, **self._modes[1]})

        arrays = [leaves[n] for n in places]
        try:
            shapes = _unboxed(jax.eval_shape(init, arrays))
            names = [name for name in shapes if name not in ("params", *WRITTEN)]
            states = compiled(lambda a: {n: _unboxed(init(a))[n] for n in names})(arrays)
        except flax.errors.InvalidRngError as error:
            raise _needs_key(error) from error
        generator = np.random.default_rng(seed)

        def draw(shape: Any) -> np.ndarray:
            if not jnp.issubdtype(shape.dtype, jnp.floating):
                return np.zeros(shape.shape, shape.dtype)
            fan = max(1, int(np.prod(shape.shape[:-1])))
            return (generator.standard_normal(shape.shape) / np.sqrt(fan)).astype(shape.dtype)

        return {"params": jax.tree.map(draw, shapes.get("params", {})), **states}

    def _apply(
        self, parameters: Any, states: Any, inputs: Inputs, train: bool, record: Record
    ) -> tuple[Any, Any]:
        def intercept(proceed: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            widen(module, self._dtype)
            if context.method_name != "__call__":
                return proceed(*args, **kwargs)
            path, kind = "/".join(module.path), type(module).__name__
            self._learn(path, module)
            rates = silence(record, path, module, args, kwargs)
            try:
                return record(path, kind, proceed, args, kwargs)
            finally:
                for name, rate in rates.items():  # the module may be called again
                    object.__setattr__(module, name, rate)

        variables = traverse_util.unflatten_dict(
            {f"params/{n}": a for n, a in parameters.items()} | dict(states), sep="/"
        )
        keyword = {**inputs.keyword, **self._modes[0 if train else 1]}
        try:
            with nn.intercept_methods(intercept), drawn_in_functions.watched(record):
                output, new = self._model.apply(
                    variables,
                    *inputs.positional,
                    rngs=self._rngs,
                    mutable=list(self._collections),
                    **keyword,
                )
        except flax.errors.InvalidRngError as error:
            raise _needs_key(error) from error
        flat = traverse_util.flatten_dict(_unboxed(dict(new)), sep="/")
        return output, {**states, **{n: a for n, a in flat.items() if n in states}}

    def _widened(self, proceed: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Call a method of a submodule whose zeros are of the dtype of the comparison."""
        widen(context.module, self._dtype)
        return proceed(*args, **kwargs)

    def _learn(self, path: str, module: nn.Module) -> None:
        """Note what a submodule is, and what it was made with."""
        self.kinds[path] = type(module).__name__
        fields = getattr(type(module), "__dataclass_fields__", {})
        self.fields[path] = {
            name: getattr(module, name, None) for name in fields if name not in ("parent", "name")
        }


def _needs_key(error: Exception) -> CannotCompare:
    return CannotCompare(
        f"rngs: the model draws random numbers and got no key for them ({str(error).split('(')[0]}"
        'expected rngs={name: key} with every name it asks for, such as {"dropout": '
        "jax.random.key(0)}"
    )


#: In the names of modules that drop entries, channels or samples at a `rate`.
DROPPING = ("Dropout", "DropPath", "StochasticDepth")


def silence(record: Record, path: str, module: Any, args: Any, kwargs: Any) -> dict[str, float]:
    """Note a dropout that is at work, and stop it unless it is to draw.

    The module is a copy that lives for one trace, so its rate may be set.

    Returns:
        The field that was set to 0, with what it was.
    """
    name = _rate_field(module)
    rate = getattr(module, name, 0.0) if name else 0.0
    if not isinstance(rate, (int, float)) or rate == 0:
        return {}
    told = kwargs.get("deterministic")
    if told is None and name == "rate" and len(args) > 1 and isinstance(args[1], bool):
        told = args[1]
    if told is None:
        told = getattr(module, "deterministic", None)
    if not told:
        record.drops(path, float(rate))
        if not record.dropout:
            object.__setattr__(module, name, 0.0)
            return {name: rate}
    return {}


def _rate_field(module: Any) -> str:
    """What a module that draws calls its rate; others may have a field of that name, too."""
    if hasattr(module, "rate") and any(n in type(module).__name__ for n in DROPPING):
        return "rate"
    of_flax = any(base.__module__.startswith("flax.") for base in type(module).__mro__[:-1])
    return "dropout_rate" if of_flax and hasattr(module, "num_heads") else ""


def widen(module: Any, dtype: np.dtype) -> None:
    """Let parameters that are float32 by default, and the carries of cells, be of this dtype.

    The module, and the cell in it, are copies that live for one trace.
    """
    for each in (module, getattr(module, "cell", None)):
        if getattr(each, "param_dtype", None) == jnp.float32:
            object.__setattr__(each, "param_dtype", jnp.dtype(dtype))


def mode_arguments(call: Any, inputs: Inputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a model in train and in eval mode, recognised by their names."""
    names = [name for name in inspect.signature(call).parameters if name in MODES]
    names = [name for name in names if name not in inputs.keyword]
    return {n: MODES[n] for n in names}, {n: not MODES[n] for n in names}


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """A new array, a float of this dtype if it was a float."""
    return np.array(array, dtype=dtype if is_float(array) else array.dtype)


def _unboxed(tree: Any) -> Any:
    return nn.meta.unbox(tree)
