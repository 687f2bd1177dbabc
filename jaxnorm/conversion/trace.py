"""A traced program with the layers marked, laid out flat: who made a value, and who reads it.

Calls are opened; the bodies of loops are programs of their own.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Literal

from jaxnorm.conversion.elementwise import SAME_ENTRIES, body_of, is_elementwise
from jaxnorm.conversion.foreign import arrays_in, is_array, is_opaque, leaves_of, without_leaks

#: Bodies that run another time, or not at all: programs of their own.
_LOOPS = {"scan", "while", "cond"}

#: Hand a parameter on, its numbers as they are.
_AS_IT_IS = SAME_ENTRIES - {"broadcast_in_dim", "rev"} | {"convert_element_type", "stop_gradient"}

_PREFIX = "jaxnorm"


class Layer(NamedTuple):
    """A marked call of a layer, in its shapes: without the axes of an outer vmap."""

    path: str
    kind: str  # its class
    shape: tuple[int, ...]  # of its output
    neurons: int  # how many of the output's entries belong to one sample
    kernel_axes: int
    why: str | None  # why the rule cannot take it over


class Mark(NamedTuple):
    """A mark: "layer" or "kernel", "in" or "out" of a normalization, "returned" by a module."""

    what: str
    number: int
    path: str


class Marks:
    """Marks values of a program while it is traced; the marked calls of layers by number."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._numbers = itertools.count()

    def layer(self, layer: Layer, kernel: jax.Array | None, z: jax.Array) -> jax.Array:
        """The output of a layer, marked as its kernel is."""
        number = len(self.layers)
        self.layers.append(layer)
        if kernel is not None:
            _mark(Mark("kernel", number, layer.path), kernel)
        return _mark(Mark("layer", number, layer.path), z)

    def kernel(self, path: str, kernel: jax.Array) -> None:
        """Mark a kernel alone."""
        _mark(Mark("kernel", next(self._numbers), path), kernel)

    def normalization(self, path: str, x: jax.Array, run: Callable[[Any], Any]) -> jax.Array:
        """The output of a normalization, marked as its input is."""
        number = next(self._numbers)
        return _mark(Mark("out", number, path), run(_mark(Mark("in", number, path), x)))

    def returned(self, path: str, out: Any) -> Any:
        """What a module returns, marked if it is an array."""
        return _mark(Mark("returned", next(self._numbers), path), out) if is_array(out) else out


def _mark(mark: Mark, x: jax.Array) -> jax.Array:
    return checkpoint_name(x, f"{_PREFIX} {mark.what} {mark.number} {mark.path}")


class Traced(NamedTuple):
    """A traced program, and what of its results is known to be in objects that are no pytrees."""

    program: Any
    visible: int  # so many results are arrays in pytrees; those that follow are in such objects
    opaque: tuple[str, ...]  # the classes of these


def trace(apply: Any, args: tuple, kwargs: dict) -> Traced:
    """The program of apply(*args, **kwargs); arrays are its inputs, everything else is static."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    seen: dict[str, Any] = {}  # no traced values, which must not outlive the trace

    def run(*arrays):
        given = iter(arrays)
        full = [next(given) if is_array(leaf) else leaf for leaf in leaves]
        args, kwargs = jax.tree.unflatten(structure, full)
        results = leaves_of(apply(*args, **kwargs))
        visible = [leaf for leaf in results if is_array(leaf)]
        opaque = [leaf for leaf in results if is_opaque(leaf)]
        names = sorted({type(each).__name__ for each in opaque})
        seen.update(visible=len(visible), opaque=tuple(names))
        return [*visible, *(array for each in opaque for array in arrays_in(each))]

    with without_leaks(apply, args, kwargs):
        program = jax.make_jaxpr(run)(*arrays)
    return Traced(program, **seen)


def signature(args: tuple, kwargs: dict) -> Any:
    """What a trace depends on, as a key; None if that cannot be told."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    key = tuple((x.shape, str(x.dtype)) if is_array(x) else (type(x), x) for x in leaves)
    try:
        hash((structure, key))
    except TypeError:
        return None
    return structure, key


@dataclass(eq=False)
class Value:
    """A value in the flat program."""

    aval: Any
    constant: bool = False  # whether it is known without running the program, and one number
    number: Any = None  # that number, if it is given as such
    maker: Any = None
    users: list[Any] = field(default_factory=list)
    outer: "Value | None" = None  # of an input of a loop's body: the value outside
    fixed: bool = False  # of an input of a loop's body: whether it is the same in every round
    output: bool = False  # whether it leaves the program
    hidden: bool = False  # whether it may do so in an object that is no pytree


@dataclass(eq=False)
class Step:
    """An equation of the flat program."""

    eqn: Any
    inputs: list[Value]
    outputs: list[Value]
    scope: tuple[Any, ...]  # what it is in: places among the equations; of a loop with its body's
    calls: tuple[str, ...]  # the names of the calls among these
    index: int  # its place there
    around: tuple[str, ...]  # the primitives that it is in

    @property
    def name(self) -> str:
        """Its primitive, or the function that it calls."""
        return self.eqn.primitive.name

    @property
    def mark(self) -> Mark | None:
        """The mark that it is, if it is one."""
        words = str(self.eqn.params["name"]).split(" ", 3) if self.name == "name" else []
        return Mark(words[1], int(words[2]), words[3]) if words[:1] == [_PREFIX] else None


@dataclass(eq=False)
class Program:
    """A flat program, and those of the bodies of its loops; `followed` is what `follow` found."""

    steps: list[Step] = field(default_factory=list)
    bodies: list["Program"] = field(default_factory=list)
    loop: str = ""
    step: Any = None  # that a body belongs to
    outputs: list[Value] = field(default_factory=list)  # of a body
    scope: tuple[Any, ...] = ()  # what it is in
    inputs: list[Value] = field(default_factory=list)
    opaque: tuple[str, ...] = ()  # classes of results that are no pytrees
    followed: dict[Value, Any] = field(default_factory=dict)

    def all(self) -> Iterator["Program"]:
        """This one and all within."""
        yield self
        for body in self.bodies:
            yield from body.all()


def turned_in(program: Any) -> set[str]:
    """The paths of the layers whose marked kernels have their axes in another order."""
    flat = flatten(Traced(program, 0, ()))
    steps = (step for each in flat.all() for step in each.steps)
    marked = ((step.mark, step.inputs[0]) for step in steps)
    return {m.path for m, kernel in marked if m and m.what == "kernel" and origin(kernel)[1]}


def is_turned(kernel: Any) -> bool:
    """Whether `jax.vmap` maps a kernel along another axis than the first: no program shows it."""
    while (axis := getattr(kernel, "batch_dim", None)) is not None:
        if axis != 0:
            return True
        kernel = kernel.val
    return False


def flatten(traced: Traced) -> Program:
    """The flat program of a traced one."""
    program, closed = Program(opaque=traced.opaque), traced.program
    program.inputs = [Value(v.aval) for v in closed.jaxpr.invars]
    outputs = _lay_out(program, closed.jaxpr, _constants(closed), program.inputs)
    for number, value in enumerate(outputs):
        value.output, value.hidden = True, value.hidden or number >= traced.visible
    if traced.opaque:  # whatever nobody reads may be in there
        for value in (value for step in program.steps for value in step.outputs):
            if not value.users and not value.output:
                value.output = value.hidden = True
    else:
        _forget_dead(program)
    return program


def _constants(closed: Any) -> list[Value]:
    values = []
    for variable, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        # An array of JAX may be a parameter that the model was bound to: not part of the program.
        known = not isinstance(constant, jax.Array) and np.size(constant) == 1
        number = np.asarray(constant).reshape(()) if known and _numeric(constant) else None
        values.append(Value(variable.aval, constant=number is not None, number=number))
    return values


def _numeric(constant: Any) -> bool:
    return not jnp.issubdtype(getattr(constant, "dtype", np.float32), jax.dtypes.extended)


def _lay_out(program, jaxpr, constants, inputs, scope=(), calls=(), around=()) -> list[Value]:
    """Append the steps of a jaxpr; returns its outputs."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom) -> Value:
        if isinstance(atom, Literal):
            return Value(atom.aval, constant=np.size(atom.val) == 1, number=np.asarray(atom.val))
        return known[atom]

    for index, eqn in enumerate(jaxpr.eqns):
        given = [read(atom) for atom in eqn.invars]
        body = None if is_elementwise(eqn) else body_of(eqn)
        if body is not None and len(body.jaxpr.invars) == len(given):
            inner = (*scope, index), (*calls, str(eqn.params.get("name", "")))
            inner = (*inner, (*around, eqn.primitive.name))
            results = _lay_out(program, body.jaxpr, _constants(body), given, *inner)
        else:
            results = [Value(v.aval) for v in eqn.outvars]
            step = Step(eqn, given, results, scope, calls, index, around)
            program.steps.append(step)
            for value in given:
                value.users.append(step)
            constant = _one_number(step)
            for value in results:
                value.maker, value.constant = step, constant
            _bodies(program, step)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def origin(kernel: Value) -> tuple[bool, bool]:
    """(whether a kernel is no input of the program, whether its axes are in another order)."""
    value, turned = kernel, False
    while value is not None:
        if value.maker is None:
            value = value.outer
            continue
        turned = turned or value.maker.name == "transpose"
        if value.maker.name not in _AS_IT_IS:
            return True, turned
        value = value.maker.inputs[value.maker.outputs.index(value)]
    return False, turned


def _one_number(step: Step) -> bool:
    """Whether the step makes the same known number everywhere."""
    simple = step.name in SAME_ENTRIES or is_elementwise(step.eqn)
    return simple and bool(step.inputs) and all(value.constant for value in step.inputs)


def _bodies(program: Program, step: Step) -> None:
    """The bodies of a loop (or of anything else that holds programs) as programs of their own."""
    around, number = (*step.around, step.name), itertools.count()
    for name, param in step.eqn.params.items():
        for closed in param if isinstance(param, tuple | list) else (param,):
            if isinstance(closed, ClosedJaxpr):
                jaxpr, constants = closed.jaxpr, _constants(closed)
            elif hasattr(closed, "eqns") and hasattr(closed, "constvars"):
                jaxpr, constants = closed, [Value(v.aval) for v in closed.constvars]
            else:
                continue
            if name in ("fwd_jaxpr_thunk", "jvp_jaxpr_fun", "bwd"):
                continue
            scope = (*step.scope, (step.index, next(number)))
            inputs = _body_inputs(step, jaxpr.invars)
            body = Program(loop=step.name, step=step, scope=scope, inputs=inputs)
            body.outputs = _lay_out(body, jaxpr, constants, inputs, scope, around=around)
            for value in body.outputs:
                value.output = True
            _forget_dead(body)
            program.bodies.append(body)


def _body_inputs(step: Step, variables: Any) -> list[Value]:
    """Inputs of a body, each with the value outside and whether it is the same every round."""
    params, outside = step.eqn.params, step.inputs[-len(variables) :] if variables else []
    if len(outside) < len(variables):
        outside = [None] * len(variables)
    constants = len(variables)
    if step.name == "scan":  # what is carried along is the same weights too
        constants = params["num_consts"] + params["num_carry"]
    elif step.name == "cond":
        constants = 0
    if step.name == "while":  # which of them are constants is not worth knowing: all rounds differ
        outside = [None] * len(variables)
    return [
        Value(v.aval, outer=outer, fixed=i < constants)
        for i, (v, outer) in enumerate(zip(variables, outside, strict=True))
    ]


def _forget_dead(program: Program) -> None:
    """Drop steps whose results nobody needs, but for marks of kernels and steps with bodies."""
    live: set[int] = set()
    steps = []
    for step in reversed(program.steps):
        needed = any(v.output or id(v) in live for v in step.outputs)
        kernel = step.mark is not None and step.mark.what == "kernel"
        if needed or step.name in _LOOPS:
            live.update(map(id, step.inputs))
        if needed or kernel or step.name in _LOOPS:
            steps.append(step)
        else:
            for value in step.inputs:
                value.users.remove(step)
    program.steps = steps[::-1]
