"""Networks in Flax, converted whole and compared with the oracle, in float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxnorm
from jaxnorm.conversion.report import Report, Row
from jaxnorm.linen import Deferred, Product
from parity_tests import oracle
from parity_tests.models import train_jax
from parity_tests.models.flax_networks import LINEN, NNX, RESEARCH, TASKS, images
from parity_tests.models.outcome import Network, Outcome, Trial
from parity_tests.oracle import Convolution
from parity_tests.tolerances import GATE, slice_error, summation

#: The form of the gradient that the oracle computes, and that needs no optimizer of ours.
PRECONDITIONED = jaxnorm.Rule(gradient="preconditioned")


@dataclass(frozen=True)
class Tap:
    """What one call of a layer or a normalization was given and returned, and the layer itself."""

    x: Any
    z: Any
    delta: Any
    module: Any


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled without the passes that take long: each program runs once.

    What is compared bit for bit is compiled as a user's is, whatever the tests do elsewhere: the
    older emitters round as what else is computed beside it lets them.
    """
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options={**quick, "xla_cpu_use_fusion_emitters": True})


def initial(shapes: Any) -> Any:
    """float64 variables of these shapes: random, variances positive, scales near 1."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(7)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        name, value = str(path), rng.normal(size=leaf.shape)
        if "kernel" in name:
            return jnp.asarray(value / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)))
        positive = "scale" in name or "var" in name
        return jnp.asarray(np.exp(0.2 * value) if positive else 0.2 * value)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def build(make: Callable[[], Any]) -> Any:
    """An nnx model with `initial` values, without compiling its initialization."""
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, initial(state))


def linen_variables(name: str) -> tuple[nn.Module, Any, Any, dict[str, Any]]:
    """(a linen model, its variables, inputs, the keyword arguments of its call)."""
    make, inputs, kwargs = (LINEN | RESEARCH)[name]
    model, x, kwargs = make(), jnp.asarray(inputs()), dict(kwargs)
    if kwargs.pop("rngs", False):
        kwargs["rngs"] = {"dropout": jax.random.key(3), "noise": jax.random.key(4)}
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return model, initial(jax.eval_shape(model.init, keys, x)), x, kwargs


def linen(
    name: str, rule: jaxnorm.Rule = PRECONDITIONED, wrong: dict[str, Any] | None = None
) -> Outcome:
    """Convert a linen model and compare; `wrong` are gates to use in place of those found."""
    model, variables, x, kwargs = linen_variables(name)
    params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    report = jaxnorm.linen.find_gates(model, variables, x, **kwargs).once()
    gates = "auto" if wrong is None else {**report.gates, **wrong}
    run = jaxnorm.linen.neuronwise(model, gates, rule=rule)

    def evaluate(apply: Any, params: Any, taps: Any = None) -> Any:
        out = apply({"params": params, **state}, x, **kwargs)
        out, new = out if "mutable" in kwargs else (out, {})
        return jnp.sum(out * cotangent(out.shape)), (out, new)

    gradient = jax.value_and_grad(evaluate, argnums=1, has_aux=True)
    plain = compiled(lambda params: gradient(model.apply, params))(params)
    ours = compiled(lambda params: gradient(run, params))(params)

    seen: dict[str, Any] = {}

    def tapped(params: Any, taps: dict[str, Any]) -> Any:
        def tap(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module, path = context.module, "/".join(context.module.path)
            out = call_next(*args, **kwargs)
            if context.method_name == "__call__" and path in taps:
                out = out + taps[path]
                seen[path] = module.clone(parent=None)
                inner[path] = (args[0], out)
            return out

        inner: dict[str, Any] = {}
        with nn.intercept_methods(tap):
            loss, _ = evaluate(model.apply, params)
        return loss, inner

    wanted = _wanted(report)
    shapes: dict[str, Any] = {}

    def look(call_next: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call_next(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path in wanted:
            shapes[path] = out.shape
        return out

    with nn.intercept_methods(look):
        jax.eval_shape(lambda: evaluate(model.apply, params))
    zeros = {path: jnp.zeros(shape) for path, shape in shapes.items()}
    deltas, inner = compiled(jax.grad(tapped, argnums=1, has_aux=True))(params, zeros)
    taps = {
        path: Tap(x=x, z=z, delta=deltas[path], module=seen[path]) for path, (x, z) in inner.items()
    }
    return _compare((name, "linen", report), plain, ours, params, taps, rule)


def of_nnx(name: str, rule: jaxnorm.Rule = PRECONDITIONED) -> Outcome:
    """Convert an nnx model in place, compare, and convert it back."""
    model = build(lambda: NNX[name](nnx.Rngs(0, dropout=1)))
    x = jnp.asarray(images())
    before = nnx.graphdef(model)

    def gradients() -> Any:
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params: Any) -> Any:
            copy = nnx.merge(graph, params, rest, copy=True)
            out = copy(x)
            state = nnx.to_pure_dict(nnx.state(copy, nnx.BatchStat))
            return jnp.sum(out * cotangent(out.shape)), (out, state)

        (value, aux), grads = compiled(jax.value_and_grad(loss, has_aux=True))(params)
        return (value, aux), nnx.to_pure_dict(grads)

    plain, plain_model = gradients(), nnx.clone(model)
    report = jaxnorm.nnx.convert(model, example_input=x, rule=rule)
    ours = gradients()
    taps = _nnx_taps(plain_model, x, _wanted(report))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    result = _compare((name, "nnx", report), plain, ours, params, taps, rule)
    jaxnorm.nnx.revert(model)
    if nnx.graphdef(model) != before:
        result.unequal.append("the model after reverting")
    return result


def _nnx_taps(model: Any, x: Any, wanted: set[str]) -> dict[str, Tap]:
    """The same as by an interceptor, by subclasses."""
    inner: dict[str, Any] = {}
    modules = {"/".join(map(str, path)): each for path, each in nnx.iter_modules(model)}
    modules = {path: each for path, each in modules.items() if path in wanted}

    def tap(reference: type) -> type:
        def __call__(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            out = reference.__call__(self, x, *args, **kwargs)
            out = out + self.taps.get(self.where, 0.0)
            inner[self.where] = (x, out)
            return out

        return type(reference.__name__, (reference,), {"__call__": __call__})

    graph, state = nnx.split(model)

    def run(taps: dict[str, Any]) -> Any:
        inner.clear()
        copy = nnx.merge(graph, state, copy=True)
        for path, each in nnx.iter_modules(copy):
            name = "/".join(map(str, path))
            if name in wanted:
                object.__setattr__(each, "taps", taps)
                object.__setattr__(each, "where", name)
                object.__setattr__(each, "__class__", tap(type(each)))
        out = copy(x)
        return jnp.sum(out * cotangent(out.shape)), dict(inner)

    _, shapes = jax.eval_shape(run, {})
    taps = {path: jnp.zeros(z.shape) for path, (_, z) in shapes.items()}
    deltas, values = compiled(jax.grad(run, has_aux=True))(taps)
    return {
        path: Tap(x=x, z=z, delta=deltas[path], module=modules[path])
        for path, (x, z) in values.items()
    }


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """A random one: averages tell nothing behind a normalization."""
    return np.random.default_rng(9).normal(size=shape)


def _wanted(report: Report) -> set[str]:
    """The layers that are compared, and the normalizations that they are deferred to."""
    paths = {row.layer for row in report.converted}
    return paths | {row.gate.at for row in report.rows if isinstance(row.gate, Deferred)}


def _flat(tree: Any) -> dict[str, Any]:
    """path/parameter -> array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in leaves}


def _compare(names, plain, ours, params, taps, rule) -> Outcome:
    """Outputs and other gradients bit for bit, the layers' gradients with the oracle."""
    (plain_out, plain_grads), (out, grads) = plain, ours
    result = Outcome(*names)
    if not all(jax.tree.leaves(jax.tree.map(np.array_equal, plain_out, out))):
        result.unequal.append("the outputs")
    if not _step_is_finite(params, grads):
        result.unequal.append("finite numbers after a step")
    plain_grads, grads, params = _flat(plain_grads), _flat(grads), _flat(params)
    assert grads.keys() == plain_grads.keys() == params.keys()
    converted = {row.layer: row for row in result.report.converted}
    for path in params:
        layer = path.rpartition("/")[0]
        if layer not in converted and not np.array_equal(grads[path], plain_grads[path]):
            result.unequal.append(f"the gradient of {path}")
    for path, row in converted.items():
        result.errors[path] = _against_oracle(row, path, grads, params, taps, rule)
    return result


def _against_oracle(row: Row, path: str, grads: Any, params: Any, taps: Any, rule: Any) -> float:
    """The worst error of the layer's gradients."""
    tap, names = taps[path], [f"{path}/kernel", f"{path}/bias"]
    kernel = np.asarray(params[names[0]])
    bias = np.asarray(params[names[1]]) if names[1] in params else None
    x, delta = np.asarray(tap.x), np.asarray(tap.delta)
    knobs = oracle.Knobs(
        **{name: getattr(rule, name) for name in oracle.Knobs.__dataclass_fields__}
    )
    slope = _slope(row, path, taps)
    if row.kind == "Conv":
        strides = tap.module.strides or 1
        view = Convolution(strides=strides, padding=tap.module.padding).view(x.shape, kernel.shape)
        expected = oracle.linear(view, x, kernel, bias, delta, slope, knobs)
        g_kernel, g_bias, unit = expected.g_kernel, expected.g_bias, 0.0
        flat = (-1, kernel.shape[-1])
    else:
        inputs = _inputs(tap.module)
        width = int(np.prod(x.shape[x.ndim - inputs :]))
        flat = (width, kernel.size // width)
        rows = x.reshape(-1, width)
        delta, slope = delta.reshape(len(rows), -1), np.reshape(slope, (len(rows), -1))
        offset = None if bias is None else bias.reshape(-1)
        expected = oracle.dense(rows, kernel.reshape(flat), offset, delta, slope, knobs)
        g_kernel, g_bias = expected.g_kernel, expected.g_bias
        unit = _roundings(rows, delta, expected) / GATE["float64"]
    got = np.asarray(grads[names[0]]).reshape(flat)
    errors = [slice_error(got, np.asarray(g_kernel).reshape(flat), axes=(1,), unit=unit)]
    if bias is not None and np.abs(g_bias).max() > 0:
        errors.append(slice_error(np.ravel(grads[names[1]]), np.ravel(g_bias), axes=()))
    return max(errors)


def _roundings(x: np.ndarray, delta: np.ndarray, layer: oracle.Layer) -> np.ndarray:
    """What the kernel's gradient may be off by where its sum over samples cancels."""
    columns = zip(layer.mean.T, delta.T, strict=True)
    terms = np.stack([np.abs(x - mean).T @ np.abs(d) for mean, d in columns], axis=1)
    return summation(len(x), np.float64) * terms / layer.sigma**2


def _inputs(module: Any) -> int:
    """How many axes of x a layer sums over."""
    axis = getattr(module, "axis", -1)
    return 1 if isinstance(axis, int) else len(axis)


def _slope(row: Row, path: str, taps: dict[str, Tap]) -> np.ndarray:
    """The derivative of the activation where it really is, by the oracle."""

    def name(gate: Any) -> str:
        return {"gelu": "gelu_tanh", None: "identity"}.get(gate) or gate

    gate, z = row.gate, np.asarray(taps[path].z)
    if callable(gate):  # one without a name
        return np.asarray(jax.vjp(gate, jnp.asarray(z))[1](jnp.ones(z.shape))[0])
    if isinstance(gate, Deferred):
        return oracle.GATES[name(gate.gate)][1](np.asarray(taps[gate.at].z))
    if isinstance(gate, Product):
        other = np.asarray(taps[gate.other].z)
        slope = oracle.GATES[name(gate.gate)][1](z)
        return slope * oracle.GATES[name(gate.other_gate)][0](other)
    return oracle.GATES[name(gate)][1](z)


def _step_is_finite(params: Any, grads: Any) -> bool:
    optimizer = optax.sgd(1e-2, momentum=0.9)

    @compiled
    def step(params: Any, grads: Any) -> Any:
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    new = jax.tree.leaves(step(params, grads))
    moved = [not np.array_equal(a, b) for a, b in zip(new, jax.tree.leaves(params), strict=True)]
    return any(moved) and all(np.isfinite(a).all() for a in new)


def networks() -> Iterator[Network]:
    """All of them, as the command takes them."""
    for library, table, measure in (
        ("linen", LINEN | RESEARCH, _linen_by_default),
        ("nnx", NNX, of_nnx),
    ):
        for name in table:
            run = partial(_timed, measure, name)
            yield Network(name, library, run, (), _trial(library, name))


def _trial(library: str, name: str) -> Trial | None:
    """How the network is trained."""
    if name not in TASKS:
        return None
    return Trial(TASKS[name].text, 1e-2, partial(train_jax.trial, library, name))


def _linen_by_default(name: str) -> Outcome:
    """`linen` with the report of the default form, which takes the layers in loops as well."""
    result = linen(name)
    model, variables, x, kwargs = linen_variables(name)
    result.report = jaxnorm.linen.find_gates(model, variables, x, **kwargs)
    compared = result.errors
    result.unclear += [row.layer for row in result.report.converted if row.layer not in compared]
    return result


def _timed(measure: Callable[[str], Outcome], name: str) -> Outcome:
    start = time.perf_counter()
    result = measure(name)
    result.seconds = time.perf_counter() - start
    return result
