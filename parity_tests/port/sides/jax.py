"""What both APIs of Flax have in common: one compiled program per mode, and the record of calls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core.tracers import current_trace

from parity_tests.port import structure
from parity_tests.port.sides.base import (
    Arrays,
    Call,
    Dropped,
    Given,
    Inputs,
    Key,
    Run,
    Side,
    Training,
    is_float,
)

#: Names of the argument that says train or eval, and its value in train mode.
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "eval": False,
    "inference": False,
}


class Record:
    """Notes what submodules read and return while a program is traced; gives them other values.

    What happens below a transformation within the model (a scan, a remat) is not seen.
    """

    def __init__(self, given: Mapping[Key, Given], dropout: bool) -> None:
        self.given, self.dropout = given, dropout
        self.calls: list[Call] = []
        self.dropped: list[Dropped] = []
        self._count: dict[str, int] = {}
        self._open: list[Key] = []
        self._clock = 0
        self._trace = current_trace()

    def __call__(
        self, path: str, kind: str, proceed: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Call a submodule."""
        if current_trace() != self._trace:
            return proceed(*args, **kwargs)
        number = self._count.get(path, 0)
        self._count[path] = number + 1
        call = Call((path, number), kind, parent=self._open[-1] if self._open else None)
        call.began, self._clock = self._clock, self._clock + 1
        self.calls.append(call)
        self._open.append(call.key)
        given = self.given.get(call.key, Given())
        (args, kwargs), call.arguments = _exchange((args, kwargs), given.arguments)
        call.read = tuple(map(id, call.arguments.values()))
        result, call.results = _exchange(proceed(*args, **kwargs), given.results)
        call.returned = tuple(map(id, call.results.values()))
        call.ended, self._clock = self._clock, self._clock + 1
        self._open.pop()
        return result

    def drops(self, path: str, rate: float) -> None:
        """Note a dropout that is at work."""
        self.dropped.append(Dropped(path, rate))


def _exchange(tree: Any, new: Mapping[int, Any]) -> tuple[Any, dict[int, Any]]:
    """(the tree with other arrays at these places, the arrays that were in it)."""
    leaves, definition = jax.tree.flatten(tree, is_leaf=lambda x: not _plain(x))
    arrays = {n: leaf for n, leaf in enumerate(leaves) if _numeric(leaf)}
    leaves = [new.get(n, leaf) for n, leaf in enumerate(leaves)]
    return jax.tree.unflatten(definition, leaves), arrays


def _plain(value: Any) -> bool:
    """Whether a value is a container that is looked into; modules and states are not."""
    return isinstance(value, (tuple, list, dict)) or value is None


def _numeric(leaf: Any) -> bool:
    if not isinstance(leaf, (jax.Array, np.ndarray)):
        return False
    return jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool


def is_array(value: Any) -> bool:
    """Whether an input is an array that the program takes, and not a flag."""
    return isinstance(value, np.ndarray)


class JaxSide(Side):
    """A model in Flax: `_apply` is all that the two APIs write differently."""

    def __init__(self) -> None:
        self._programs: dict[Any, tuple[Any, dict[str, Any]]] = {}

    @abstractmethod
    def _apply(
        self, parameters: Any, states: Any, inputs: Inputs, train: bool, record: Record
    ) -> tuple[Any, Any]:
        """(what the model returns, all states after it)."""

    def shapes(self, inputs: Inputs, *, train: bool) -> Run:
        """What a run would give, traced only: arrays are `jax.ShapeDtypeStruct`."""
        leaves, definition = jax.tree.flatten(inputs_tree(inputs))
        places = [n for n, leaf in enumerate(leaves) if is_array(leaf)]
        traced: dict[str, Any] = {}

        def program(parameters: Any, states: Any, arrays: Any) -> Any:
            record = Record({}, dropout=False)
            output, new = self._apply(
                parameters, states, _filled(definition, leaves, places, arrays), train, record
            )
            traced["calls"], traced["dropped"] = record.calls, record.dropped
            flat = structure.flatten(output)
            traced["names"] = [name for name, _ in flat]
            traced["named"] = structure.named(output)
            return (
                new,
                [array for _, array in flat],
                [(c.arguments, c.results) for c in record.calls],
            )

        new, output, values = jax.eval_shape(
            program, self.parameters, self.states, [leaves[n] for n in places]
        )
        for call, (arguments, results) in zip(traced["calls"], values, strict=True):
            call.arguments, call.results = arguments, results
        outputs = list(zip(traced["names"], output, strict=True))
        run = Run(outputs, traced["named"], new, traced["calls"])
        run.dropped = traced["dropped"]
        return run

    def run(
        self,
        parameters: Arrays,
        states: Arrays,
        inputs: Inputs,
        *,
        train: bool,
        dropout: bool = False,
        cotangents: Sequence[np.ndarray] | None = None,
        given: Mapping[Key, Given] | None = None,
    ) -> Run:
        """See `Side`."""
        leaves, definition = jax.tree.flatten(inputs_tree(inputs))
        places = [n for n, leaf in enumerate(leaves) if is_array(leaf)]
        arrays = [leaves[n] for n in places]
        given = given or {}
        parts = {key: _parts(each) for key, each in given.items()}
        values = {key: tuple(map(_floats, part[:2])) for key, part in parts.items()}
        still = {
            key: tuple({n: a for n, a in each.items() if not is_float(a)} for each in part[:2])
            for key, part in parts.items()
        }
        pulls = {key: part[2:] for key, part in parts.items()}
        outer = [] if cotangents is None else list(cotangents)
        rest = [None if n in places else leaf for n, leaf in enumerate(leaves)]
        key = (train, dropout, cotangents is not None, str(definition), repr(rest))
        key += (jax.tree.structure((values, still, pulls)),)
        if key not in self._programs:
            self._programs[key] = self._program(
                definition, leaves, places, train, dropout, cotangents is not None
            )
        program, traced = self._programs[key]
        found = program(parameters, states, arrays, values, still, outer, pulls)
        found = jax.tree.map(np.asarray, found)
        calls = [
            replace(call, arguments=arguments, results=results)
            for call, (arguments, results) in zip(traced["calls"], found["calls"], strict=True)
        ]
        outputs = list(zip(traced["names"], found["output"], strict=True))
        run = Run(outputs, traced["named"], found["states"], calls)
        run.dropped = traced["dropped"]
        if cotangents is not None:
            g_parameters, g_arrays, g_values = found["gradients"]
            run.parameter_gradients = g_parameters
            run.input_gradients = {
                name: g
                for name, g in zip(input_names(inputs), g_arrays, strict=True)
                if g is not None
            }
            run.given_gradients = {key: Given(*g) for key, g in g_values.items()}
        return run

    def _program(
        self,
        definition: Any,
        leaves: list[Any],
        places: list[int],
        train: bool,
        dropout: bool,
        differentiate: bool,
    ) -> tuple[Any, dict[str, Any]]:
        """(a compiled pass, and what is known about it once it was traced)."""
        traced: dict[str, Any] = {}
        floats = [n for n, place in enumerate(places) if is_float(leaves[place])]

        @compiled
        def program(
            parameters: Any,
            states: Any,
            arrays: Any,
            values: Any,
            still: Any,
            cotangents: Any,
            pulls: Any,
        ) -> Any:
            def function(parameters: Any, moving: Any, values: Any) -> Any:
                every = list(arrays)
                for n, value in zip(floats, moving, strict=True):
                    every[n] = value
                given = {
                    key: Given(*(a | b for a, b in zip(value, still[key], strict=True)))
                    for key, value in values.items()
                }
                record = Record(given, dropout)
                inputs = _filled(definition, leaves, places, every)
                output, new = self._apply(parameters, states, inputs, train, record)
                flat = structure.flatten(output)
                traced["names"] = [name for name, _ in flat]
                traced["named"] = structure.named(output)
                traced["calls"] = [replace(c, arguments={}, results={}) for c in record.calls]
                traced["dropped"] = list(record.dropped)
                by_key = {call.key: (call.arguments, call.results) for call in record.calls}
                computed = {
                    key: tuple(
                        {n: by_key[key][part][n] for n in pulls[key][part]} for part in (0, 1)
                    )
                    for key in pulls
                }
                arrays_out = [array for _, array in flat]
                outer = [array for array in arrays_out if _inexact(array)]
                more = {"states": new, "output": arrays_out, "calls": list(by_key.values())}
                return (outer if differentiate else [], computed), more

            moving = [arrays[n] for n in floats]
            if not differentiate:
                return function(parameters, moving, values)[1]
            out, pull, found = jax.vjp(function, parameters, moving, values, has_aux=True)
            wanted = jax.tree.map(lambda c, o: c.astype(o.dtype), (cotangents, pulls), out)
            g_parameters, g_moving, g_values = pull(wanted)
            g_arrays: list[Any] = [None] * len(arrays)
            for n, g in zip(floats, g_moving, strict=True):
                g_arrays[n] = g
            found["gradients"] = (g_parameters, g_arrays, g_values)
            return found

        return program, traced

    def train(
        self,
        parameters: Arrays,
        states: Arrays,
        inputs: Inputs,
        cotangents: Sequence[np.ndarray],
        training: Training,
    ) -> list[Arrays]:
        """See `Side`."""
        tx = (
            optax.sgd(training.rate)
            if training.optimizer == "SGD"
            else optax.adam(training.rate, eps=training.epsilon)
        )

        @compiled
        def update(gradients: Any, state: Any, parameters: Any) -> Any:
            updates, state = tx.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state

        state, trajectory = tx.init(parameters), []
        for _ in range(training.steps):
            run = self.run(parameters, states, inputs, train=True, cotangents=cotangents)
            parameters, state = update(run.parameter_gradients, state, parameters)
            parameters = jax.tree.map(np.asarray, parameters)
            states = run.states
            trajectory.append(parameters)
        return trajectory


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for a program that runs a few times: on the CPU, and quick to compile."""
    options = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}
    program = jax.jit(function, compiler_options=options)

    def call(*args: Any) -> Any:
        with jax.default_device(jax.devices("cpu")[0]):
            return program(*args)

    return call


def _inexact(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _floats(arrays: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Those that have a gradient."""
    return {n: array for n, array in arrays.items() if is_float(array)}


def _parts(given: Given) -> tuple[dict[int, np.ndarray], ...]:
    """Values of a call, and cotangents of what it computes."""
    parts = (given.arguments, given.results, given.argument_cotangents, given.result_cotangents)
    return tuple(map(dict, parts))


def inputs_tree(inputs: Inputs) -> Any:
    """The inputs as a tree of Python's containers."""
    return (tuple(inputs.positional), dict(inputs.keyword))


def input_names(inputs: Inputs) -> list[str]:
    """The name of each array among the inputs, in the order of `jax.tree.leaves`."""
    every, _ = jax.tree_util.tree_flatten_with_path(inputs_tree(inputs))
    names = []
    for path, leaf in every:
        if is_array(leaf):
            keys = [getattr(k, "key", getattr(k, "idx", None)) for k in path[1:]]
            names.append(".".join(map(str, keys)))
    return names


def _filled(definition: Any, leaves: list[Any], places: list[int], arrays: Any) -> Inputs:
    """The inputs with these arrays in them."""
    every = list(leaves)
    for n, array in zip(places, arrays, strict=True):
        every[n] = array
    return Inputs(*jax.tree.unflatten(definition, every))
