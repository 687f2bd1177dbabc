"""A model in Flax nnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from flax import nnx

from parity_tests.port.errors import CannotCompare
from parity_tests.port.sides import drawn_in_functions
from parity_tests.port.sides.base import Arrays, Inputs
from parity_tests.port.sides.jax import JaxSide, Record
from parity_tests.port.sides.linen import cast, mode_arguments, silence, widen


class NnxSide(JaxSide):
    """A `flax.nnx.Module`; the one that is given is read, and never called.

    Args:
        model: the module.
        inputs: an example.
        dtype: floats of parameters and states are cast to it.
        modes: as in `LinenSide`; besides it ``model.train()`` and ``model.eval()`` are called.
    """

    framework = "nnx"

    def __init__(
        self,
        model: nnx.Module,
        inputs: Inputs,
        *,
        dtype: str = "float64",
        modes: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        definition, parameters, keys, states = nnx.split(model, nnx.Param, nnx.RngState, ...)
        self._definition, self._keys, self._dtype = definition, keys, np.dtype(dtype)
        self._modes = modes or mode_arguments(type(model).__call__, inputs)
        self.modes = True
        self.drawn = False
        self._trees: list[tuple[list[str], Any]] = []
        found: list[Arrays] = []
        for tree in (parameters, states):
            leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
            names = [_joined(path) for path, _ in leaves]
            self._trees.append((names, structure))
            arrays = [cast(np.asarray(leaf), dtype) for _, leaf in leaves]
            found.append(dict(zip(names, arrays, strict=True)))
        self.parameters, self.states = found
        self.kinds = {_path(path): type(m).__name__ for path, m in nnx.iter_modules(model)}
        self.fields = {_path(path): _plain_fields(m) for path, m in nnx.iter_modules(model)}

    def _apply(
        self, parameters: Any, states: Any, inputs: Inputs, train: bool, record: Record
    ) -> tuple[Any, Any]:
        trees = [
            jax.tree.unflatten(structure, [arrays[name] for name in names])
            for (names, structure), arrays in zip(self._trees, (parameters, states), strict=True)
        ]
        keys = jax.tree.map(lambda key: key, self._keys)  # variables of this trace
        model = nnx.merge(self._definition, trees[0], keys, trees[1])
        model.train() if train else model.eval()
        for _, module in nnx.iter_modules(model):
            widen(module, self._dtype)
        keyword = {**inputs.keyword, **self._modes[0 if train else 1]}
        with _recorded(model, record), drawn_in_functions.watched(record):
            try:
                output = model(*inputs.positional, **keyword)
            except ValueError as error:
                if "rngs" in str(error):
                    raise CannotCompare(
                        f"rngs: the model draws random numbers and has no key for them ({error}); "
                        "expected a model that was made with rngs=, such as nnx.Rngs(0)"
                    ) from error
                raise
        new = nnx.split(model, nnx.Param, nnx.RngState, ...)[3]
        flat = {_joined(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(new)[0]}
        return output, {**states, **{n: a for n, a in flat.items() if n in states}}


@contextmanager
def _recorded(model: nnx.Module, record: Record) -> Iterator[None]:
    """Calls of the submodules go through the record, as long as this lasts."""
    paths: dict[int, str] = {}
    for path, module in nnx.iter_modules(model):
        paths.setdefault(id(module), _path(path))
    running: set[int] = set()
    classes = {type(module) for _, module in nnx.iter_modules(model)}
    replaced: list[tuple[type, Any]] = []

    def wrapped(original: Any) -> Any:
        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            path = paths.get(id(module))
            if path is None or id(module) in running:  # of a transformation, or its base class
                return original(module, *args, **kwargs)
            running.add(id(module))
            rates = silence(record, path, module, args, kwargs)
            try:
                return record(
                    path,
                    type(module).__name__,
                    lambda *a, **k: original(module, *a, **k),
                    args,
                    kwargs,
                )
            finally:
                running.discard(id(module))
                for name, rate in rates.items():  # the module is called again
                    object.__setattr__(module, name, rate)

        return call

    try:
        for each in classes:
            original = next(
                (vars(b)["__call__"] for b in each.__mro__ if "__call__" in vars(b)), None
            )
            if original is not None:
                replaced.append((each, vars(each).get("__call__")))
                setattr(each, "__call__", wrapped(original))  # noqa: B010
        yield
    finally:
        for each, before in replaced:
            if before is None:
                del each.__call__
            else:
                setattr(each, "__call__", before)  # noqa: B010


def _joined(path: Any) -> str:
    keys = [k for k in path if getattr(k, "name", None) != "value"]
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in keys)
    return "/".join(map(str, parts))


def _path(path: Any) -> str:
    return "/".join(map(str, path))


def _plain_fields(module: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, (nnx.Variable, nnx.Module))
    }
