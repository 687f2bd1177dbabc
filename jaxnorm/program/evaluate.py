"""A traced program, run as it is, with the statistics of its layers recorded beside it.

Every equation is the program's own. Beside the values go the handles of layers, each with the value
that its layer's output has become, until the slope is told.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from jaxnorm.activations import gate_slope
from jaxnorm.backward.deferred import tell_gate
from jaxnorm.conversion.elementwise import CALLS
from jaxnorm.program.plan import Plan

#: Layer -> handle, beside a value.
Handles = dict[str, Any]


class Run:
    """One run of a program.

    Args:
        plan: what is done where.
        record: (name of a layer, its site, x, whether it has a gate, z, statistics) ->
            (z, handle or None).
    """

    def __init__(self, plan: Plan, record: Callable[..., Any]) -> None:
        self.plan, self.record = plan, record

    def __call__(self, jaxpr: Any, consts: Any, args: Any, statistics: dict[str, Any]) -> list[Any]:
        """The results of the whole program."""
        return self._run(jaxpr, consts, args, [{} for _ in args], statistics, ())[0]

    def _run(
        self, jaxpr: Any, consts: Any, args: Any, beside: list[Handles], statistics: Any, scope: Any
    ) -> tuple[list[Any], list[Handles]]:
        """(Results, the handles beside each) of a part of the program."""
        values: dict[Any, Any] = {}
        handles: dict[Any, Handles] = {}
        values.update(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        handles.update(zip(jaxpr.invars, beside, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        def read_handles(atom: Any) -> Handles:
            return {} if isinstance(atom, Literal) else handles.get(atom, {})

        for index, eqn in enumerate(jaxpr.eqns):
            given = [read(atom) for atom in eqn.invars]
            given_handles = [read_handles(atom) for atom in eqn.invars]
            given = self._told_before(eqn, given, given_handles, scope, index)
            if _inner(self.plan, eqn, scope, index):
                results, result_handles = _nested(
                    self, eqn, given, given_handles, statistics, scope, index
                )
            else:
                results = _bind(eqn, given)
                result_handles = self._pass_on(eqn, given, given_handles, results, scope, index)
            place = scope, index
            for name, site, gated in self.plan.sites.get(place, ()):
                x = given[1 - site.side]
                results[0], handle = self.record(name, site, x, gated, results[0], statistics)
                if handle is not None:
                    there = result_handles[0]  # a kernel may be joined with itself
                    there[name] = there[name] + handle if name in there else handle
            for number, variable in enumerate(eqn.outvars):
                tells = self.plan.tells.get((place, number))
                if tells is not None:
                    results[number], result_handles[number] = _told(
                        tells, results[number], result_handles[number]
                    )
                values[variable] = results[number]
                if result_handles[number]:
                    handles[variable] = result_handles[number]
        outs = jaxpr.outvars
        return [read(atom) for atom in outs], [read_handles(atom) for atom in outs]

    def _told_before(
        self, eqn: Any, given: list[Any], beside: list[Handles], scope: Any, index: int
    ) -> list[Any]:
        """The inputs of a product; one whose way ends here has its slope, the other one."""
        for edge in self.plan.edges.get((scope, index), ()):
            if edge.kind == "told":
                shape = jnp.shape(given[edge.source])
                slope = lax.stop_gradient(given[1 - edge.source])
                for handle in beside[edge.source].values():
                    slope_here = jnp.broadcast_to(slope, shape)
                    given[edge.source] = tell_gate(given[edge.source], handle, slope=slope_here)
        return given

    def _pass_on(
        self, eqn: Any, given: Any, beside: list[Handles], results: Any, scope: Any, index: int
    ) -> list[Handles]:
        """The handles beside the results of an equation."""
        found: list[Handles] = [{} for _ in results]
        for edge in self.plan.edges.get((scope, index), ()):
            for name, handle in beside[edge.source].items() if edge.kind != "told" else ():
                moved, there = _along(edge, eqn, given, handle, results), found[edge.target]
                # Two parts of one layer's output: each has its own entries of the handle.
                there[name] = there[name] + moved if name in there else moved
        return found


def _along(edge: Any, eqn: Any, given: list[Any], handle: Any, results: list[Any]) -> Any:
    """A handle along one edge."""
    result = results[edge.target]
    if edge.kind == "times":
        other = lax.stop_gradient(given[1 - edge.source])
        handle = handle * other.astype(handle.dtype)
    if edge.kind != "move":
        return jnp.broadcast_to(handle, jnp.shape(result))
    rest = [lax.stop_gradient(value) for value in given]
    dtype = rest[edge.source].dtype

    def run(value: Any) -> Any:
        out = _bind(eqn, [value if n == edge.source else each for n, each in enumerate(rest)])
        return out[edge.target]

    # What the step does to a change of this input: it is linear, or routes it as max pooling does.
    moved = jax.jvp(run, (rest[edge.source],), (handle.astype(dtype),))[1]
    return moved.astype(handle.dtype)


def _told(tells: dict[str, Any], value: Any, beside: Handles) -> tuple[Any, Handles]:
    """A value whose slope is told to the layers beside it; or their handles times the slope."""
    left: Handles = {}
    for name, handle in beside.items():
        tell = tells.get(name)
        if tell is None:
            left[name] = handle
        elif not tell.ends:
            left[name] = handle * gate_slope(tell.gate, lax.stop_gradient(value))
        elif tell.gate is None:
            value = tell_gate(value, handle, slope=jnp.ones(value.shape, handle.dtype))
        else:
            value = tell_gate(value, handle, tell.gate)
    return value, left


def _bind(eqn: Any, given: list[Any]) -> list[Any]:
    """The equation itself."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*functions, *given, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _inner(plan: Plan, eqn: Any, scope: Any, index: int) -> bool:
    """Whether something is done inside of the equation."""
    name = eqn.primitive.name
    if name in CALLS:
        return plan.inside((*scope, index))
    if name == "scan":
        return plan.inside((*scope, (index, 0)))
    if name == "cond":
        return any(plan.inside((*scope, (index, n))) for n in range(len(eqn.params["branches"])))
    return False


def _nested(
    run: Run,
    eqn: Any,
    given: list[Any],
    beside: list[Handles],
    statistics: dict[str, Any],
    scope: Any,
    index: int,
) -> tuple[list[Any], list[Handles]]:
    """An equation with a program in it, of which something is recorded."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _scan(run, eqn, given, statistics, (*scope, (index, 0)))
    if name == "cond":
        return _cond(run, eqn, given, statistics, (*scope, index))
    body = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
    jaxpr, consts = (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())

    def inside(given: Any, beside: Any, statistics: Any) -> Any:
        return run._run(jaxpr, consts, given, beside, statistics, (*scope, index))

    if name in ("checkpoint", "remat", "remat2"):
        inside = jax.checkpoint(inside, prevent_cse=params["prevent_cse"], policy=params["policy"])
    elif name in ("jit", "pjit"):
        inside = jax.jit(inside, inline=params.get("inline", False))
    return inside(given, beside, statistics)


def _scan(run: Run, eqn: Any, given: list[Any], statistics: Any, scope: Any) -> Any:
    params = eqn.params
    body = params["jaxpr"]
    constants, carried = params["num_consts"], params["num_carry"]
    consts, init = given[:constants], given[constants : constants + carried]
    mapped = {name: s for name, s in statistics.items() if _stacked(run.plan, name, scope)}
    fixed = {name: s for name, s in statistics.items() if name not in mapped}

    def step(carry: Any, xs: Any) -> Any:
        values, records = xs
        args = [*consts, *carry, *values]
        out, _ = run._run(
            body.jaxpr, body.consts, args, [{} for _ in args], {**fixed, **records}, scope
        )
        return out[:carried], out[carried:]

    more = {"_split_transpose": params["_split_transpose"]} if "_split_transpose" in params else {}
    carry, ys = lax.scan(
        step,
        init,
        (given[constants + carried :], mapped),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
        **more,
    )
    out = [*carry, *ys]
    return out, [{} for _ in out]


def _stacked(plan: Plan, name: str, scope: Any) -> bool:
    """Whether a layer's parameter is mapped by the loop of this body."""
    return any(
        each == name and scope in site.kernel.mapped
        for sites in plan.sites.values()
        for each, site, _ in sites
    )


def _cond(run: Run, eqn: Any, given: list[Any], statistics: Any, scope: Any) -> Any:
    which, *operands = given

    def branch(number: int, body: Any) -> Callable[..., Any]:
        place = (*scope[:-1], (scope[-1], number))

        def inside(operands: Any, statistics: Any) -> Any:
            beside = [{} for _ in operands]
            return run._run(body.jaxpr, body.consts, operands, beside, statistics, place)[0]

        return inside

    branches = [branch(n, body) for n, body in enumerate(eqn.params["branches"])]
    if which.dtype == bool:
        out = lax.cond(which, branches[1], branches[0], operands, statistics)
    else:
        out = lax.switch(which, branches, operands, statistics)
    return out, [{} for _ in out]
