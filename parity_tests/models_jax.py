"""Whole Flax models that know nothing of jaxnorm, converted, against the oracle, in float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from parity_tests.numerics import exact
from parity_tests.patches import Convolution
from parity_tests.tolerances import slice_error

#: The form of the gradient that the oracle computes, and that needs no optimizer of ours.
PRECONDITIONED = jaxnorm.Rule(gradient="preconditioned")

# --- linen ------------------------------------------------------------------------------------


class ResNetBlock(nn.Module):
    """Two convolutions, each with BatchNorm, and a skip connection."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Return what has the strides and the features."""
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=not train)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), self.strides, use_bias=False, name="projection")(x)
            x = nn.BatchNorm(use_running_average=not train, name="projection_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Convolution, BatchNorm, ReLU, residual blocks, pooling."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        """Images [N, H, W, C] to logits."""
        x = nn.Conv(6, (3, 3), name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = ResNetBlock(6)(x, train)
        x = ResNetBlock(8, 2)(x, train)
        return nn.Dense(3)(jnp.mean(x, (1, 2)))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Tokens [N, T, D] to tokens."""
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, deterministic=not train)(y)
        y = nn.Dense(16)(nn.LayerNorm()(x))
        y = nn.Dropout(0.1, deterministic=not train)(nn.gelu(y))
        return x + nn.Dense(8)(y)


class ViT(nn.Module):
    """Patches, a class token, positions, transformer blocks."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        """Images [N, H, W, C] to logits."""
        x = nn.Conv(8, (4, 4), (4, 4), padding="VALID", name="patches")(x)
        x = x.reshape(len(x), -1, 8)
        token = self.param("token", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(), (1, *x.shape[1:]))
        x = EncoderBlock(name="block")(x, train)
        return nn.Dense(3, name="head")(nn.LayerNorm()(x)[:, 0])


class Mixer(nn.Module):
    """MLP-Mixer: one MLP over the tokens, one over the channels."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Images [N, H, W, C] to logits."""
        x = nn.Conv(8, (2, 2), (2, 2))(x)
        x = x.reshape(len(x), -1, 8)
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = nn.Dense(12, name="tokens_in")(y)
        y = nn.Dense(x.shape[1], name="tokens_out")(nn.gelu(y, approximate=False))
        x = x + jnp.swapaxes(y, 1, 2)
        y = nn.Dense(12, name="channels_in")(nn.LayerNorm()(x))
        x = x + nn.Dense(8, name="channels_out")(nn.gelu(y, approximate=False))
        return nn.Dense(3)(jnp.mean(nn.LayerNorm()(x), axis=1))


class GPT(nn.Module):
    """A causal language model with SwiGLU, its output tied to the embedding."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Tokens [N, T] to logits."""
        embed = nn.Embed(11, 8)
        x = embed(tokens)
        mask = nn.make_causal_mask(tokens)
        y = nn.RMSNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, use_bias=False)(y, mask=mask)
        y = nn.RMSNorm()(x)
        y = nn.silu(nn.Dense(12, name="gate")(y)) * nn.Dense(12, name="up")(y)
        x = x + nn.Dense(8, name="down")(y)
        return embed.attend(nn.RMSNorm()(x))


class Policy(nn.Module):
    """A recurrent policy: encoder, LSTM, a simple cell, head."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Observations [N, T, I] to action logits."""
        x = nn.tanh(nn.Dense(8, name="encoder")(x))
        x = nn.RNN(nn.OptimizedLSTMCell(8, param_dtype=x.dtype))(x)
        x = nn.RNN(nn.SimpleCell(8, param_dtype=x.dtype))(x)
        return nn.Dense(4, name="head")(x)


# --- nnx --------------------------------------------------------------------------------------


class NnxBlock(nnx.Module):
    """As `ResNetBlock`."""

    def __init__(self, inputs: int, features: int, strides: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(inputs, features, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(features, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(features, rngs=rngs)
        self.skip = nnx.Conv(inputs, features, (1, 1), strides, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Return what has the strides and the features."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(y)) + self.skip(x))


class NnxResNet(nnx.Module):
    """As `ResNet`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem, self.norm = nnx.Conv(3, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(6, 6, 1, rngs), NnxBlock(6, 8, 2, rngs)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Images [N, H, W, C] to logits."""
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, (1, 2)))


class NnxEncoderBlock(nnx.Module):
    """A pre-norm transformer block with SwiGLU."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.gate, self.up = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(8, 12, rngs=rngs)
        self.down, self.dropout = nnx.Linear(12, 8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Tokens [N, T, D] to tokens."""
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(self.dropout(nnx.silu(self.gate(y)) * self.up(y)))


class NnxViT(nnx.Module):
    """Patches, positions, transformer blocks."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, 8, (4, 4), (4, 4), padding="VALID", rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 4, 8)))
        self.blocks = nnx.List([NnxEncoderBlock(rngs)])
        self.hidden, self.head = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Images [N, H, W, C] to logits."""
        x = self.patches(x)
        x = x.reshape(len(x), -1, 8) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.tanh(self.hidden(jnp.mean(x, axis=1))))


# --- running them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tap:
    """What one call of a layer or a normalization was given and returned, and the layer itself."""

    x: Any
    z: Any
    delta: Any
    module: Any


@dataclass
class Comparison:
    """A model before and after its conversion.

    Attributes:
        name: of the model.
        report: of the conversion.
        same_output: whether outputs and state are the same, bit for bit.
        others: worst error of a gradient of any other parameter; 0: bit for bit.
        errors: layer -> worst error of its gradients against the oracle.
        finite: whether the parameters are, after a step of Optax.
        seconds: that all this took.
    """

    name: str
    report: Report
    same_output: bool
    others: float
    errors: dict[str, float] = field(default_factory=dict)
    finite: bool = False
    seconds: float = 0.0

    @property
    def worst(self) -> float:
        """The worst error against the oracle."""
        return max(self.errors.values())


def images() -> np.ndarray:
    """Six small images, with a mean."""
    return np.random.default_rng(0).normal(size=(6, 8, 8, 3)) + 0.5


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled without the passes that take long: each program runs once."""
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=quick)


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


LINEN: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    "ResNet": (ResNet, images, {"train": True, "mutable": ["batch_stats"]}),
    "ViT": (ViT, images, {"train": True, "rngs": True}),
    "Mixer": (Mixer, images, {}),
    "GPT": (GPT, lambda: np.random.default_rng(1).integers(0, 11, (4, 6)), {}),
    "Policy": (Policy, lambda: np.random.default_rng(2).normal(size=(3, 5, 7)), {}),
}

NNX: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {"ResNet": NnxResNet, "ViT": NnxViT}


def linen(
    name: str, rule: jaxnorm.Rule = PRECONDITIONED, wrong: dict[str, Any] | None = None
) -> Comparison:
    """Convert a linen model and compare; `wrong` are gates to use in place of those found."""
    make, inputs, kwargs = LINEN[name]
    model, x, kwargs = make(), jnp.asarray(inputs()), dict(kwargs)
    if kwargs.pop("rngs", False):
        kwargs["rngs"] = {"dropout": jax.random.key(3)}
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = initial(jax.eval_shape(model.init, keys, x))
    params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    report = jaxnorm.linen.find_gates(model, variables, x, **kwargs)
    gates = "auto" if wrong is None else {**report.gates, **wrong}
    run = jaxnorm.linen.neuronwise(model, gates, rule=rule)

    def evaluate(apply: Any, params: Any, taps: Any = None) -> Any:
        out = apply({"params": params, **state}, x, **kwargs)
        out, new = out if "mutable" in kwargs else (out, {})
        return jnp.sum(out * _cotangent(out.shape)), (out, new)

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
    result = _compare(name, report, plain, ours, _flat(params), taps, rule)
    result.finite = _step_is_finite(params, ours[1])
    return result


def of_nnx(name: str, rule: jaxnorm.Rule = PRECONDITIONED) -> Comparison:
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
            return jnp.sum(out * _cotangent(out.shape)), (out, state)

        (value, aux), grads = compiled(jax.value_and_grad(loss, has_aux=True))(params)
        return (value, aux), nnx.to_pure_dict(grads)

    plain, plain_model = gradients(), nnx.clone(model)
    report = jaxnorm.nnx.convert(model, example_input=x, rule=rule)
    ours = gradients()
    taps = _nnx_taps(plain_model, x, _wanted(report))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    result = _compare(name, report, plain, ours, _flat(params), taps, rule)
    result.finite = _step_is_finite(params, ours[1])
    jaxnorm.nnx.revert(model)
    assert nnx.graphdef(model) == before
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
        return jnp.sum(out * _cotangent(out.shape)), dict(inner)

    _, shapes = jax.eval_shape(run, {})
    taps = {path: jnp.zeros(z.shape) for path, (_, z) in shapes.items()}
    deltas, values = compiled(jax.grad(run, has_aux=True))(taps)
    return {
        path: Tap(x=x, z=z, delta=deltas[path], module=modules[path])
        for path, (x, z) in values.items()
    }


def _cotangent(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(9).normal(size=shape)


def _wanted(report: Report) -> set[str]:
    """The layers that are compared, and the normalizations that they are deferred to."""
    paths = {row.layer for row in report.converted}
    return paths | {row.gate.at for row in report.rows if isinstance(row.gate, Deferred)}


def _flat(tree: Any) -> dict[str, Any]:
    """path/parameter -> array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in leaves}


def _compare(name, report, plain, ours, params, taps, rule) -> Comparison:
    (plain_out, plain_grads), (out, grads) = plain, ours
    same = jax.tree.map(np.array_equal, plain_out, out)
    plain_grads, grads = _flat(plain_grads), _flat(grads)
    assert grads.keys() == plain_grads.keys() == params.keys()
    own = {row.layer: row for row in report.converted}
    others = [path for path in params if path.rpartition("/")[0] not in own]
    differences = [_difference(grads[path], plain_grads[path]) for path in others]
    result = Comparison(name, report, all(jax.tree.leaves(same)), max(differences, default=0.0))
    for path, row in own.items():
        result.errors[path] = _against_oracle(row, path, grads, params, taps, rule)
    return result


def _difference(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return 0.0 if np.array_equal(a, b) else slice_error(a, b, axes=())


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
        g_kernel, g_bias = expected.g_kernel, expected.g_bias
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
    got = np.asarray(grads[names[0]]).reshape(flat)
    errors = [slice_error(got, np.asarray(g_kernel).reshape(flat), axes=(1,))]
    if bias is not None and np.abs(g_bias).max() > 0:
        errors.append(slice_error(np.ravel(grads[names[1]]), np.ravel(g_bias), axes=()))
    return max(errors)


def _inputs(module: Any) -> int:
    """How many axes of x a layer sums over."""
    axis = getattr(module, "axis", -1)
    return 1 if isinstance(axis, int) else len(axis)


def _slope(row: Row, path: str, taps: dict[str, Tap]) -> np.ndarray:
    """The derivative of the activation where it really is, by the oracle."""

    def name(gate: Any) -> str:
        return {"gelu": "gelu_tanh", None: "identity"}.get(gate) or gate

    gate, z = row.gate, np.asarray(taps[path].z)
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


def comparisons() -> Iterator[tuple[str, Comparison]]:
    """Every model, with the name of its library."""
    for library, names, compare in (("linen", LINEN, linen), ("nnx", NNX, of_nnx)):
        for name in names:
            start = time.perf_counter()
            with exact(("jax",)):
                result = compare(name)
            result.seconds = time.perf_counter() - start
            yield library, result


def rows() -> list[dict[str, Any]]:
    """One row of the table for each model."""
    table = []
    for library, each in comparisons():
        report = each.report
        worst = max(each.errors, key=lambda layer: each.errors[layer])
        unequal = [] if each.same_output else ["outputs"]
        unequal += [f"other gradients, {each.others:.0e}"] if each.others else []
        table.append(
            {
                "model": f"{each.name} ({library})",
                "framework": "Flax",
                "layers": len(report.rows),
                "converted": len(report.converted),
                "deferred": len(report.deferred),
                "unresolved": len(report.unresolved),
                "left alone": len(report.left),
                "worst error": each.worst,
                "where": worst,
                "not bitwise": ", ".join(unequal),
                "seconds": each.seconds,
            }
        )
    return table
