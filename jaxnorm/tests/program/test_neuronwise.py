"""Any function of parameters: its layers, their gates and their statistics.

What is right is said by `neuronwise_einsum` and its like, told the slope that was derived by hand.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm
from jaxnorm import DEFERRED, Rule, neuronwise_conv, neuronwise_dense, neuronwise_einsum, tell_gate
from jaxnorm.statistics import merging


@pytest.fixture(autouse=True)
def float64():
    """In float64, with NumPy's broadcasting, as users write it."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape)  # of JAX it would be float32 here


def recorded(
    fn: Any,
    params: Any,
    *args: Any,
    rule: Rule = Rule(),
    gates: Any = "auto",
    same: Any = np.testing.assert_array_equal,
) -> Any:
    """(Statistics of the batch, report); outputs and gradients are fn's, bit for bit."""
    f = jaxnorm.neuronwise(fn, gates, rule=rule)
    stats = jaxnorm.init_statistics(f, params, *args)

    def loss(fn: Any, params: Any, **more: Any) -> Any:
        out = jax.tree.leaves(fn(params, *args, **more))
        return sum(jnp.sum(o * normal(n, *o.shape)) for n, o in enumerate(out))

    # (With the tests' own XLA flags two programs may differ in the last bits.)
    compiled = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
    plain = compiled(jax.value_and_grad(lambda params: loss(fn, params)))(params)
    value, (grads, batch) = compiled(
        jax.value_and_grad(lambda p, s: loss(f, p, neuron_stats=s), argnums=(0, 1))
    )(params, stats)
    jax.tree.map(same, (value, grads), plain)
    assert jax.tree.structure(batch) == jax.tree.structure(stats)
    return batch, jaxnorm.find_gates(f, params, *args)


#: Where the parameters are and lie; a layer told by hand has them as they come.
STATIC = ("kernel_axes", "bias_axes", "kernel_path", "bias_path")


def by_hand(layer: Any) -> Any:
    """The statistics of a layer: layer(statistics) -> (z, handle) or z, told all that it is."""
    made: dict[str, Any] = {}

    def given(empty: Any) -> Any:
        made["shapes"] = jax.eval_shape(empty)
        return None

    layer(given)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), made["shapes"])
    return jax.grad(lambda s: jnp.sum(layer(s)))(zeros)


def assert_same(got: Any, expected: Any, *, rtol: float = 1e-10) -> None:
    """The same moments, counts and axes; sums may be scaled by one factor for each neuron."""
    assert got.kernel_axes is None or sorted(got.kernel_axes) == list(range(len(got.kernel_axes)))
    a, b = merging.moments(got), merging.moments(expected)
    np.testing.assert_allclose(got.samples, expected.samples)
    for name in ("mean", "sigma"):
        mine, theirs = getattr(a, name), getattr(b, name)
        theirs = jnp.broadcast_to(
            theirs.reshape(-1, theirs.shape[-1]), mine.reshape(-1, mine.shape[-1]).shape
        )
        np.testing.assert_allclose(mine.reshape(theirs.shape), theirs, rtol=rtol, atol=1e-12)


X = normal(0, 24, 5) * 2 + 3


@pytest.mark.parametrize("layout", ["io", "oi", "reshaped", "vmap", "einsum", "matmul", "cast"])
def test_dense_in_every_layout(layout):
    kernel, bias = normal(1, 5, 7), normal(2, 7)

    def fn(params, x):
        w, b = params["w"], params["b"]
        if layout == "oi":
            z = x @ w.T + b
        elif layout == "reshaped":
            z = (x.reshape(4, 6, 5) @ w.reshape(5, 7) + b.reshape(1, 1, 7)).reshape(24, 7)
        elif layout == "vmap":
            z = jax.vmap(lambda row: w @ row + b)(x)
        elif layout == "einsum":
            z = jnp.einsum("oi,bi->bo", w, x) + b[None]
        elif layout == "cast":
            z = x @ w.astype(jnp.float32).astype(x.dtype) + b
        else:
            z = b + jnp.matmul(x, w)
        return jax.nn.silu(z)

    turned = layout in ("oi", "vmap", "einsum")
    params = {"w": kernel.T if turned else kernel, "b": bias}
    if layout == "cast":
        kernel = kernel.astype(jnp.float32).astype(kernel.dtype)
    batch, report = recorded(fn, params, X)
    assert [(row.layer, row.gate) for row in report.rows] == [("w", "silu")]
    assert batch["w"].kernel_path == ("w",)
    assert batch["w"].bias_path == ("b",)
    expected = by_hand(lambda s: neuronwise_dense(X, kernel, bias, gate="silu", statistics=s))
    assert_same(batch["w"], expected)


def test_heads_on_axes_of_their_own():
    kernel, x = normal(1, 5, 2, 3), X.reshape(4, 6, 5)

    def fn(params, x):
        z = jnp.einsum("btd,dhk->bhtk", x, params["w"]) + params["b"][:, None, :]
        return jnp.tanh(z)

    params = {"w": kernel, "b": normal(2, 2, 3)}
    batch, _ = recorded(fn, params, x)
    expected = by_hand(
        lambda s: neuronwise_einsum(
            "btd,dhk->bthk", x, kernel, params["b"], gate="tanh", statistics=s
        )
    )
    assert_same(batch["w"], expected)
    # One matrix for all heads, split behind the product.
    flat = {"w": kernel.reshape(5, 6), "b": params["b"].reshape(6)}

    def joined(params, x):
        z = (x @ params["w"] + params["b"]).reshape(4, 6, 2, 3).transpose(0, 2, 1, 3)
        return jnp.tanh(z)

    assert_same(recorded(joined, flat, x)[0]["w"], expected)


def test_groups_have_their_own_inputs():
    x, kernel = normal(0, 3, 16, 5) + 1, normal(1, 3, 5, 4)

    def fn(params, x):  # experts, or an ensemble
        return jax.nn.relu(jnp.einsum("ebi,eio->ebo", x, params["w"]))

    expected = by_hand(
        lambda s: neuronwise_einsum("ebi,eio->ebo", x, kernel, gate="relu", statistics=s)
    )
    assert_same(recorded(fn, {"w": kernel}, x)[0]["w"], expected)
    batch, _ = recorded(lambda p, x: jax.vmap(lambda w, x: jax.nn.relu(x @ w))(p, x), kernel, x)
    assert_same(batch[""], expected)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_in_every_layout(layout, groups):
    x, kernel, bias = normal(0, 2, 6, 5, 4) + 1, normal(1, 3, 2, 4 // groups, 6), normal(2, 6)
    settings = {"padding": ((1, 0), (0, 1)), "feature_group_count": groups}

    def fn(params, x):
        if layout == "NHWC":
            z = jax.lax.conv_general_dilated(
                x, params["w"], (2, 1), dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings
            )
            return jax.nn.gelu(z + params["b"])
        x, w = x.transpose(0, 3, 1, 2), params["w"]
        z = jax.lax.conv_general_dilated(x, w, (2, 1), **settings)
        return jax.nn.gelu(z + params["b"][:, None, None])

    turned = layout == "NCHW"
    params = {"w": kernel.transpose(3, 2, 0, 1) if turned else kernel, "b": bias}
    batch, _ = recorded(fn, params, x)
    expected = by_hand(
        lambda s: neuronwise_conv(
            x, kernel, bias, strides=(2, 1), gate="gelu", statistics=s, **settings
        )
    )
    assert_same(batch["w"], expected)


def test_padding_beside_a_center():
    """In the second step: what a tap sees of the padding is 0, and not the center."""
    kernel, bias = normal(1, 3, 3, 2, 4), normal(2, 4)
    settings = {"padding": ((1, 1), (1, 1)), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def fn(params, x):
        z = jax.lax.conv_general_dilated(x, params["w"], (1, 1), **settings)
        return jnp.tanh(z + params["b"])

    params, batches = {"w": kernel, "b": bias}, [normal(n, 2, 5, 5, 2) + 3 for n in (5, 6)]
    f = jaxnorm.neuronwise(fn)
    mine = jaxnorm.init_statistics(f, params, batches[0])
    hand = jaxnorm.init_statistics(f, params, batches[0])
    for x in batches:
        batch = jax.grad(lambda s, x=x: jnp.sum(f(params, x, neuron_stats=s)))(mine)
        mine = jaxnorm.update_statistics(mine, batch)

        def told(s, x=x):
            at = s["w"].replace(**dict.fromkeys(STATIC))
            z = neuronwise_conv(x, kernel, bias, padding=1, gate="tanh", statistics=at)
            return jnp.sum(jnp.tanh(z))

        hand = jaxnorm.update_statistics(hand, jax.grad(told)(hand))
    assert_same(mine["w"], hand["w"])


def test_a_number_times_the_kernel_is_one_times_the_input():
    kernel, bias = normal(1, 5, 7), normal(2, 7)
    batch, _ = recorded(
        lambda p, x: jnp.tanh(x @ (p["w"] * 0.3 / 2) + p["b"]), {"w": kernel, "b": bias}, X
    )
    expected = by_hand(
        lambda s: neuronwise_dense(X * 0.15, kernel, bias, gate="tanh", statistics=s)
    )
    assert_same(batch["w"], expected)


def test_stacked_layers_by_scan_by_index_and_one_by_one_are_the_same():
    params = {"w": normal(1, 3, 5, 5) / 2, "b": normal(2, 3, 5)}

    def scanned(params, x):
        return jax.lax.scan(lambda h, p: (jnp.tanh(h @ p["w"] + p["b"]), None), x, params)[0]

    def indexed(params, x):
        for n in range(3):
            x = jnp.tanh(x @ params["w"][n] + params["b"][n])
        return x

    def apart(layers, x):
        for layer in layers:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x

    layers = [jax.tree.map(lambda a, n=n: a[n], params) for n in range(3)]
    expected, _ = recorded(apart, layers, X)
    for fn in (scanned, indexed):
        batch, _ = recorded(fn, params, X)
        for n in range(3):
            assert_same(jax.tree.map(lambda a, n=n: a[n], batch["w"]), expected[f"{n}/w"])


def test_calls_and_rounds_add_up():
    params = {"w": normal(1, 5, 5) / 2, "b": normal(2, 5)}

    def fn(params, x):
        h = jnp.tanh(x @ params["w"] + params["b"])
        return jax.nn.relu(h @ params["w"] + params["b"])

    batch, report = recorded(fn, params, X)
    assert report["w"].gate == "tanh and relu"
    h = jnp.tanh(X @ params["w"] + params["b"])

    def layer(s):
        first = neuronwise_dense(X, *params.values(), gate="tanh", statistics=s)
        return first + neuronwise_dense(h, *params.values(), gate="relu", statistics=s)

    assert_same(batch["w"], by_hand(layer))
    assert float(batch["w"].calls) == 2

    # Behind the last call there is no activation: all of its samples count.
    batch, _ = recorded(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["w"] + p["b"], params, X)

    def half(s):
        first = neuronwise_dense(X, *params.values(), gate="tanh", statistics=s)
        last, handle = neuronwise_dense(h, *params.values(), gate=DEFERRED, statistics=s)
        return first + tell_gate(last, handle, slope=jnp.ones_like(last))

    assert_same(batch["w"], by_hand(half))

    def rounds(params, xs):
        def step(h, x):
            h = jnp.tanh(x @ params["in"] + h @ params["w"] + params["b"])
            return h, h

        return jax.lax.scan(step, jnp.zeros((4, 5)), xs)[1]

    xs = X.reshape(6, 4, 5)
    batch, _ = recorded(rounds, {**params, "in": normal(3, 5, 5)}, xs)
    assert float(batch["in"].samples) == float(batch["w"].samples) == 24


@pytest.mark.parametrize("cell", ["OptimizedLSTMCell", "LSTMCell", "GRUCell", "SimpleCell"])
def test_recurrent_cells_of_linen(cell):
    model = nn.RNN(getattr(nn, cell)(4, param_dtype=float))
    xs = normal(0, 3, 5, 2)
    params = model.init(jax.random.key(0), xs)["params"]

    def same(a, b):  # XLA may sum in another order within a loop
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)

    batch, report = recorded(lambda p, x: model.apply({"params": p}, x), params, xs, same=same)
    assert not report.left
    assert not report.unresolved
    assert {float(each.samples) for each in batch.values()} == {15.0}
    if cell == "OptimizedLSTMCell":  # its kernels are joined, in the other one each has its product
        apart = nn.RNN(nn.LSTMCell(4, param_dtype=float))
        other, _ = recorded(lambda p, x: apart.apply({"params": p}, x), params, xs, same=same)
        assert batch.keys() == other.keys()
        for name, each in batch.items():
            assert_same(each, other[name], rtol=1e-9)


def told(x, kernel, bias, slope):
    """A dense layer's statistics with this slope."""

    def layer(s):
        made = neuronwise_dense(x, kernel, bias, gate=DEFERRED, statistics=s)
        return tell_gate(*made, slope=slope(made[0]))

    return by_hand(layer)


def standardized(z):
    return (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5)


def test_gates_behind_what_comes_between():
    kernel, bias = normal(1, 5, 8), normal(2, 8)
    z = X @ kernel + bias
    mask = jax.random.bernoulli(jax.random.key(0), 0.7, z.shape)
    other = normal(5, 24, 8)
    relu = jax.nn.relu

    def at(u):
        return lambda z: (u > 0).astype(z.dtype)

    cases = {
        "a sum": (lambda z: relu(z + other), at(z + other)),
        "a normalization": (lambda z: relu(standardized(z)), at(standardized(z))),
        "dropout": (
            lambda z: relu(jnp.where(mask, z / 0.7, 0) - 0.1),
            lambda z: z / 0.7 > 0.1,
        ),
        "dropout, normalization": (
            lambda z: relu(standardized(jnp.where(mask, z, 0))),
            lambda _: standardized(jnp.where(mask, z, 0)) > 0,
        ),
        "scale and shift": (
            lambda z: relu(z * jnp.arange(1.0, 9) - 1),
            at(z * jnp.arange(1.0, 9) - 1),
        ),
        "concatenation, normalization": (
            lambda z: relu(standardized(jnp.concatenate([other, z], 1))),
            at(standardized(z)),
        ),
        "reshape": (lambda z: relu(z.reshape(2, 12, 8).transpose(1, 0, 2) + 1), at(z + 1)),
        "one activation, several readers": (lambda z: (relu(z), relu(z) * 2), at(z)),
        "parts": (
            lambda z: relu(z[:, :3]).sum() + jnp.tanh(z[:, 3:]).sum(),
            lambda z: jnp.concatenate([z[:, :3] > 0, 1 - jnp.tanh(z[:, 3:]) ** 2], 1),
        ),
        "a gated unit": (
            lambda z: jax.nn.silu(z[:, :4]) * z[:, 4:],
            lambda z: jnp.concatenate(
                [
                    jax.vmap(jax.vmap(jax.grad(jax.nn.silu)))(z[:, :4]) * z[:, 4:],
                    jax.nn.silu(z[:, :4]),
                ],
                1,
            ),
        ),
        "times another value, an activation": (
            lambda z: jnp.tanh(z * other + 1),
            lambda z: (1 - jnp.tanh(z * other + 1) ** 2) * other,
        ),
        "times another value": (
            lambda z: jnp.tanh(z) * other,
            lambda z: (1 - jnp.tanh(z) ** 2) * other,
        ),
        "jit, remat": (jax.checkpoint(jax.jit(lambda z: relu(z + other))), at(z + other)),
    }
    for name, (behind, slope) in cases.items():
        batch, report = recorded(
            lambda p, x, f=behind: f(x @ p["w"] + p["b"]), {"w": kernel, "b": bias}, X
        )
        assert not report.unresolved, name
        assert_same(batch["w"], told(X, kernel, bias, slope))


def test_max_pooling_takes_the_slope_to_the_largest():
    x, kernel = normal(0, 2, 4, 4, 3), normal(1, 1, 1, 3, 5)

    def pool(z):
        return jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    def fn(params, x):
        z = jax.lax.conv_general_dilated(
            x, params["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(pool(z))

    batch, report = recorded(fn, {"w": kernel}, x)
    assert report["w"].gate == "relu"
    z = x @ kernel[0, 0]
    chosen = jax.grad(lambda z: jnp.sum(pool(z)))(z)
    rows = x.reshape(-1, 3)
    slope = (chosen * (z > 0)).reshape(-1, 5)
    assert_same(batch["w"], told(rows, kernel[0, 0], None, lambda _: slope))


def test_averages_and_norms_written_by_hand():
    def norm(z):
        centered = z - z.mean(-1, keepdims=True)
        return centered * jax.lax.rsqrt(jnp.var(z, -1, keepdims=True) + 1e-5)

    # (Small: where a tanh is saturated, its slope has lost its digits.)
    params = {"a": normal(1, 5, 6) / 10, "b": normal(2, 6, 3)}
    row = jaxnorm.find_gates(lambda p, x: norm(x @ p["a"]) @ p["b"], params, X)["a"]
    assert (row.gate, row.unresolved) == (None, False)
    row = jaxnorm.find_gates(lambda p, x: jax.nn.relu(norm(x @ p["a"])) @ p["b"], params, X)["a"]
    assert row.gate == "relu"
    x = X.reshape(4, 6, 5)
    batch, report = recorded(lambda p, x: jnp.tanh((x @ p["a"]).mean(1)) @ p["b"], params, x)
    assert not report.unresolved
    u = (x @ params["a"]).mean(1, keepdims=True)
    slope = jnp.broadcast_to(1 - jnp.tanh(u) ** 2, (4, 6, 6)).reshape(24, 6)
    assert_same(batch["a"], told(X, params["a"], None, lambda _: slope))


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (lambda z: (jax.nn.relu(z), z), "read by others and relu"),
        (lambda z: jnp.maximum(z, normal(3, 24, 5)), "read by max of it and another value"),
        (
            lambda z: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1]), (0, z))[1],
            "it goes into a loop",
        ),
        (
            lambda z: jax.lax.scan(lambda c, _: (c, jnp.tanh(c)), z, None, 2)[1],
            "tanh sees it inside of a loop",
        ),
    ],
)
def test_what_is_not_found_is_unresolved(behind, reason):
    f = jaxnorm.neuronwise(lambda params, x: behind(x @ params))
    row = jaxnorm.find_gates(f, normal(1, 5, 5), X)[""]
    assert row.unresolved
    assert row.gate is None
    assert reason in row.reason


def test_what_is_left_alone_and_why():
    params = {
        "tied": normal(1, 5, 5),
        "table": normal(2, 7, 5),
        "low": normal(3, 5, 2),
        "up": normal(4, 2, 5),
        "carried": normal(5, 5, 5),
        "own": normal(6, 5, 5),
        "used": normal(7, 5, 2),
        "unused": normal(8, 3, 3),
        "used_too": normal(9, 5, 5),
    }

    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))

    def fn(params, x):
        x = jnp.tanh(x @ params["tied"]) @ params["tied"].T
        x = x + params["table"][jnp.arange(24) % 7]
        x = x @ (params["low"] @ params["up"])
        x = product(x, params["own"])
        x, _ = jax.lax.scan(
            lambda c, _: ((c[0] @ c[1], c[1] * 1.1), None), (x, params["carried"]), None, 2
        )
        return x[0] @ params["used"], (x[0] @ params["used_too"], params["used_too"])

    reasons = {row.layer: row.reason for row in jaxnorm.find_gates(fn, params, X).left}
    assert reasons == {
        "tied": "it is used both ways round: as weights and transposed",
        "table": "no product with it: read by gather",
        "low": "it is multiplied by another parameter",
        "up": "it is multiplied by another parameter",
        "carried": "no product with it: read by scan",
        "own": "inside of a function with a derivative of its own",
        "unused": "it is not used",
        "used_too": "it is part of the output too",
    }


def test_a_bias_that_is_not_the_layers_alone_is_none():
    w, b = normal(1, 5, 4), normal(2, 4)
    shared, _ = recorded(
        lambda p, x: jnp.tanh(x @ p["v"] + p["b"]) + jnp.tanh(x @ p["w"] + p["b"]),
        {"w": w, "v": normal(3, 5, 4), "b": b},
        X,
    )
    per_sample, _ = recorded(
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), {"w": w, "b": normal(4, 24, 4)}, X
    )
    for batch in (shared, per_sample):
        assert batch["w"].bias_path is None
        assert batch["w"].origin is None


def test_biases_that_are_not_found_are_reported():
    """Rather than that the layer silently has second moments about zero."""
    params = {"w": normal(1, 5, 4), "b": normal(2, 4)}
    spellings = [
        lambda z, b: z - b,
        lambda z, b: b - z,
        lambda z, b: 0.5 * z + 0.1 * b,
        lambda z, b: z + b + b,
        lambda z, b: z / 2 + b,
        lambda z, b: z + jnp.exp(b),
        lambda z, b: z + X[:, :4] + b,
    ]
    found = lambda z, b: z + b  # noqa: E731
    for spelling in [*spellings, found, lambda z, b: z + X[:, :4]]:
        fn = lambda p, x, s=spelling: jnp.tanh(s(x @ p["w"], p["b"]))  # noqa: E731
        reason = jaxnorm.find_gates(fn, params, X)["w"].reason
        assert ("; no bias: b is not added as x @ w + b" in reason) == (spelling in spellings)


def test_what_is_added_may_have_come_a_long_way():
    """Further than Python's calls may be nested."""

    def fn(params, x):
        far = x[:, :4]
        for _ in range(1200):
            far = far + x[:, 1:]
        return jnp.tanh(x @ params["w"] + far)

    reason = jaxnorm.find_gates(fn, {"w": normal(1, 5, 4)}, X)["w"].reason
    assert "no bias" not in reason


def test_gates_by_hand():
    params = {"a": normal(1, 5, 6), "b": normal(2, 6, 3)}

    def fn(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    batch, report = recorded(fn, params, X, gates={"a": "relu", "*": jaxnorm.linen.LEAVE})
    assert report["a"].gate == "relu"
    assert batch.keys() == {"a"}
    expected = told(X, params["a"], None, lambda z: z > 0)
    assert_same(batch["a"], expected)
    # What was found further on is found again, whatever else is edited in the report.
    summed = lambda p, x: jax.nn.relu(x @ p["a"] + X[:, :1]) @ p["b"]  # noqa: E731
    report = jaxnorm.find_gates(summed, params, X)
    auto, _ = recorded(summed, params, X)
    again, _ = recorded(summed, params, X, gates={**report.gates, "b": jaxnorm.linen.LEAVE})
    assert again.keys() == {"a"}
    assert_same(again["a"], auto["a"])
    assert report.explain("a").splitlines() == [
        "a (product)",
        "  its output -> [24, 6]",
        "  add -> [24, 6]",
        "  relu of it",
        "gate: relu, behind a sum",
    ]
    with pytest.raises(ValueError, match="pattern 'c', which matches no layer"):
        recorded(fn, params, X, gates={"c": "relu"})
    with pytest.raises(TypeError, match="a function has no modules"):
        recorded(fn, params, X, gates={"a": jaxnorm.linen.Deferred("n", "relu")})


def test_errors():
    def fn(params, x):
        return jnp.tanh(x @ params["w"])

    params = {"w": normal(1, 5, 6)}
    f = jaxnorm.neuronwise(fn)
    stats = jaxnorm.init_statistics(f, params, X)
    with pytest.raises(ValueError, match=r"got statistics of 'v', expected only of 'w'"):
        f(params, X, neuron_stats={"v": stats["w"]})
    with pytest.raises(ValueError, match="they are of another layer or rule"):
        f({"w": normal(1, 5, 7)}, X, neuron_stats=stats)
    with pytest.raises(ValueError, match="got gradient='preconditioned'"):
        jaxnorm.neuronwise(fn, rule=Rule(gradient="preconditioned"))
    with pytest.raises(ValueError, match="a function without a layer"):
        jaxnorm.init_statistics(lambda p, x: x * p, normal(1, 5), X)
    with pytest.raises(TypeError, match="expected a function of parameters"):
        jaxnorm.neuronwise(params)

    class Opaque:
        def __init__(self, z):
            self.z = z

    with pytest.raises(TypeError, match="type Opaque, which is no pytree"):
        jaxnorm.find_gates(lambda p, x: Opaque(fn(p, x)), params, X)


def test_transformations_around_it():
    params = {"w": normal(1, 5, 6), "b": normal(2, 6)}
    f = jaxnorm.neuronwise(lambda p, x: jax.nn.silu(x @ p["w"] + p["b"]))
    stats = jaxnorm.init_statistics(f, params, X)

    def loss(s, x):
        return jnp.sum(f(params, x, neuron_stats=s))

    whole = jax.grad(loss)(stats, X)["w"]
    parts = [jax.grad(loss)(stats, x) for x in X.reshape(3, 8, 5)]
    added = jax.tree.map(lambda *a: sum(a), *parts)["w"]
    mapped = jax.grad(lambda s: jnp.sum(jax.vmap(loss, (None, 0))(s, X.reshape(3, 8, 5))))(stats)
    rows = jax.grad(lambda s: jnp.sum(jax.vmap(loss, (None, 0))(s, X)))(stats)
    for each in (added, mapped["w"], rows["w"]):
        assert_same(each, whole)
    with jaxnorm.neuron_mask(jnp.arange(24) < 9):
        masked = jax.grad(loss)(stats, X)["w"]
    assert_same(masked, jax.grad(loss)(stats, X[:9])["w"])
    # A derivative by the input inside of the loss.
    inside = jax.grad(lambda s: jnp.sum(jax.grad(loss, argnums=1)(s, X) ** 2))(stats)["w"]
    assert_same(inside, whole)


def test_it_trains_as_a_linen_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Dense(6, param_dtype=float)(x))
            return nn.Dense(2, param_dtype=float)(h)

    variables = Model().init(jax.random.key(0), X)
    params = variables["params"]
    apply = jaxnorm.linen.neuronwise(Model())
    f = jaxnorm.neuronwise(lambda p, x: Model().apply({"params": p}, x))
    tx = jaxnorm.in_neuron_coordinates(optax.adamw(0.01))
    results = []
    for run, stats in (
        (
            lambda p, s: apply({"params": p, "neuron_stats": s}, X),
            jaxnorm.linen.init_statistics(apply, variables, X),
        ),
        (lambda p, s: f(p, X, neuron_stats=s), jaxnorm.init_statistics(f, params, X)),
    ):
        p, state = params, tx.init(params)
        for _ in range(3):
            grads, batch = jax.grad(lambda p, s, run=run: jnp.sum(run(p, s) ** 2), argnums=(0, 1))(
                p, stats
            )
            stats = jaxnorm.update_statistics(stats, batch)
            updates, state = tx.update(grads, state, p, neuron_stats=stats)
            p = optax.apply_updates(p, updates)
        results.append(p)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *results)


def test_first_traced_on_shards():
    """Where JAX checks what varies along which axis of a mesh: an activation's constants do not."""
    params = {"a": normal(0, 3, 4), "b": normal(1, 4), "c": normal(2, 4, 2)}
    x, reports = normal(3, 8, 3), []

    def fn(p, x):
        return jnp.clip(jax.nn.relu(x @ p["a"] + p["b"]), 0.1, 2.5) @ p["c"]

    apply = jaxnorm.neuronwise(fn)
    stats = jaxnorm.init_statistics(jaxnorm.neuronwise(fn), params, x)

    def record(stats, x):
        reports.append(jaxnorm.find_gates(fn, params, x))
        return jax.grad(lambda s: jnp.sum(apply(params, x, neuron_stats=s) ** 2))(stats)

    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    specs = {"mesh": mesh, "in_specs": (P(), P("rows")), "out_specs": P()}
    parts = jax.eval_shape(jax.shard_map(record, **specs), stats, x)
    assert str(jax.tree.map(jnp.shape, parts)) == str(jax.tree.map(jnp.shape, stats))
    assert str(reports[0]) == str(jaxnorm.find_gates(fn, params, x))
    assert not reports[0].unresolved


def test_dropout_is_looked_through_as_in_a_linen_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dropout(0.5, deterministic=False)(nn.Dense(6, param_dtype=float)(x))
            h = nn.relu(nn.LayerNorm(param_dtype=float)(h))
            h = nn.Dropout(0.5, deterministic=False)(nn.Dense(4, param_dtype=float)(h))
            return nn.tanh(h)

    rngs = {"dropout": jax.random.key(1)}
    variables = Model().init({"params": jax.random.key(0), **rngs}, X)
    params = variables["params"]
    apply = jaxnorm.linen.neuronwise(Model())
    stats = jaxnorm.linen.init_statistics(apply, variables, X, rngs=rngs)
    expected = jax.grad(
        lambda s: jnp.sum(apply({"params": params, "neuron_stats": s}, X, rngs=rngs))
    )(stats)
    batch, _ = recorded(lambda p, x: Model().apply({"params": p}, x, rngs=rngs), params, X)
    for name in ("Dense_0", "Dense_1"):
        assert_same(batch[f"{name}/kernel"], expected[name]["statistics"])
