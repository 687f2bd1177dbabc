"""What lies between a layer and its activation, and several that read one output."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm.linen import Deferred, find_gates
from parity_tests.models import jax as models
from parity_tests.models.jax import PRECONDITIONED, compiled
from parity_tests.tolerances import GATE, slice_error

X = np.random.default_rng(0).normal(size=(6, 4, 4, 3)) * [1, 3, 0.1] + [0, 5, 1]


class Net(nn.Module):
    """A convolution, and what is done with its output."""

    run: object

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        return self.run(nn.Conv(4, (1, 1), name="c", param_dtype=float)(x), x)


def norm(name="n"):
    """A normalization."""
    return nn.LayerNorm(name=name, param_dtype=float)


def init(model):
    return models.initial(jax.eval_shape(lambda key: model.init(key, X), jax.random.key(0)))


def row(run):
    model = Net(run)
    return find_gates(model, init(model), X)["c"]


#: Between the convolution and its normalization.
BETWEEN = {
    "nothing": lambda z, x: z,
    "dropout": lambda z, x: nn.Dropout(0.3, deterministic=True)(z),
    "cast": lambda z, x: z.astype("float32").astype(float),
    "scale": lambda z, x: 3 * z,
    "reshape": lambda z, x: z.reshape(z.shape[0], -1, 4),
    "concatenation": lambda z, x: jnp.concatenate([x, z, x], -1),
    "slice": lambda z, x: z[..., 1:],
    "crop": lambda z, x: z[:, 1:-1, :3],
    "padding": lambda z, x: jnp.pad(z, ((0, 0), (1, 0), (2, 1), (0, 0))),
    "average": lambda z, x: nn.avg_pool(z, (2, 2), (2, 2)),
    "maximum": lambda z, x: nn.max_pool(z, (2, 2), (2, 2)),
    "residual": lambda z, x: z + x[..., :1],
}


@pytest.mark.parametrize("name", BETWEEN)
def test_between_a_layer_and_its_normalization(name):
    between = BETWEEN[name]
    model = Net(lambda z, x: nn.relu(norm()(between(z, x))))
    variables = init(model)
    found = find_gates(model, variables, X)["c"]
    assert isinstance(found.gate, Deferred), found
    assert found.reason == "deferred to n"
    apply = jaxnorm.linen.neuronwise(model, rule=PRECONDITIONED)
    between = BETWEEN["nothing"] if name == "dropout" else between
    cotangent = np.random.default_rng(5).normal(size=model.apply(variables, X).shape)

    def explicit(params):
        given = params["c"]["kernel"], params["c"]["bias"]
        settings = {"gate": jaxnorm.DEFERRED, "rule": PRECONDITIONED}
        z, handle = jaxnorm.neuronwise_conv(X, *given, **settings)
        u = norm(None).apply({"params": params["n"]}, between(z, X))
        slope = (u > 0).astype(float)
        _, pull = jax.vjp(lambda z: between(z, X), z)
        z = jaxnorm.tell_gate(z, handle, slope=pull(slope)[0])
        u = norm(None).apply({"params": params["n"]}, between(z, X))
        return jnp.sum(nn.relu(u) * cotangent)

    expected = compiled(jax.grad(explicit))(variables["params"])
    ours = compiled(jax.grad(lambda v: jnp.sum(apply(v, X) * cotangent)))(variables)["params"]
    error = slice_error(
        np.asarray(ours["c"]["kernel"]), np.asarray(expected["c"]["kernel"]), axes=()
    )
    assert error <= (1e-6 if name == "cast" else GATE["float64"])


def loop(z, x):
    """Blocks that each send one embedding through the same function."""
    return jax.lax.scan(
        lambda h, _: (h * 0.5 + nn.silu(z) @ jnp.ones((4, 4)), None), jnp.zeros(z.shape), None, 2
    )[0]


SAME = {
    "blocks": lambda z, x: sum(nn.silu(z) @ jnp.full((4, 2), k) for k in range(3)),
    "loop": loop,
    "halves": lambda z, x: (
        nn.silu(z[..., :2]) @ jnp.ones((2, 3)) * nn.silu(z[..., 2:]).sum(-1, keepdims=True)
    ),
    "concatenated": lambda z, x: nn.silu(jnp.concatenate([z, x], -1)),
    "layouts": lambda z, x: nn.silu(z.reshape(-1, 4)).sum() + nn.silu(z),
}


@pytest.mark.parametrize("name", SAME)
def test_one_output_that_several_send_through_the_same_activation(name):
    found = row(SAME[name])
    assert (found.gate, found.unresolved) == ("silu", False), found
    assert found.reason.startswith("direct")


def test_several_normalizations_of_one_output_have_the_sum_of_what_reads_them():
    def run(z, x):
        return nn.relu(norm("n")(z)) + nn.relu(norm("m")(jnp.concatenate([x, z], -1)))[..., 3:]

    model = Net(run)
    variables = init(model)
    found = find_gates(model, variables, X)["c"]
    assert found.reason == "deferred to n and m"
    assert found.deferred
    apply = jaxnorm.linen.neuronwise(model, rule=PRECONDITIONED)

    def explicit(params):
        given = params["c"]["kernel"], params["c"]["bias"]
        z, handle = jaxnorm.neuronwise_conv(X, *given, gate=jaxnorm.DEFERRED, rule=PRECONDITIONED)
        slopes = []
        for name, u in (("n", z), ("m", jnp.concatenate([X, z], -1))):
            slopes.append(norm(None).apply({"params": params[name]}, u)[..., -4:] > 0)
        z = jaxnorm.tell_gate(z, handle, slope=sum(each.astype(float) for each in slopes))
        bound = {name: {"params": params[name]} for name in "nm"}
        one = nn.relu(norm(None).apply(bound["n"], z))
        other = nn.relu(norm(None).apply(bound["m"], jnp.concatenate([X, z], -1)))[..., 3:]
        return jnp.sum((one + other) ** 2)

    expected = compiled(jax.grad(explicit))(variables["params"])["c"]["kernel"]
    ours = compiled(jax.grad(lambda v: jnp.sum(apply(v, X) ** 2)))(variables)["params"]
    assert (
        slice_error(np.asarray(ours["c"]["kernel"]), np.asarray(expected), axes=())
        <= GATE["float64"]
    )


MISSED = {
    "graph": (lambda z, x: nn.relu(jnp.eye(6)[:, ::-1] @ z.reshape(6, -1)), "relu follows"),
    "written out": (
        lambda z, x: nn.relu((z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True)), "relu",
    ),
    "some": (lambda z, x: (nn.silu(z[..., :2]), z @ jnp.ones((4, 2))), "read by silu and oth"),
    "resized": (
        lambda z, x: nn.relu(norm()(jax.image.resize(z, (6, 8, 8, 4), "bilinear"))), "relu",
    ),
    "while": (
        lambda z, x: jax.lax.while_loop(lambda h: h.sum() < 1, lambda h: h + nn.relu(z), z), "relu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSED)
def test_an_activation_that_is_missed_is_unresolved(name):
    run, reason = MISSED[name]
    found = row(run)
    assert found.unresolved, found
    assert reason in found.reason
    assert "no activation follows" not in found.reason


def test_the_way_is_explained():
    model = Net(lambda z, x: nn.relu(norm()(jnp.concatenate([z, x], -1))))
    report = find_gates(model, init(model), X)
    assert report.explain("c").splitlines() == [
        "c (Conv)",
        "  its output -> [6, 4, 4, 4]",
        "  concatenate -> [6, 4, 4, 7]",
        "  n -> [6, 4, 4, 7]",
        "  relu -> [6, 4, 4, 7]",
        "gate: relu, deferred to n",
    ]
    with pytest.raises(KeyError, match="layer: got 'x', expected one of"):
        report.explain("x")
    assert report.verdict == "1 of 1 layer with a matrix is converted"


def test_statistics_are_made_from_what_gates_are_found_with():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, mask, train):
            x = nn.relu(nn.Dense(4, name="a", param_dtype=float)(x)) * mask
            return nn.Dropout(0.5, deterministic=not train)(x)

    model, x = Model(), jax.ShapeDtypeStruct((6, 3), float)
    kwargs = {"mask": jax.ShapeDtypeStruct((6, 1), float), "rngs": {"dropout": jax.random.key(0)}}
    shapes = {"params": {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}}
    report = find_gates(model, shapes, x, train=True, **kwargs)
    assert report["a"].gate == "relu"
    apply = jaxnorm.linen.neuronwise(model)
    stats = jaxnorm.linen.init_statistics(apply, shapes, x, train=True, **kwargs)
    assert stats["a"]["statistics"].second.shape == (3, 4)


def test_gates_of_parts_are_found_under_a_trace():
    model = Net(lambda z, x: jnp.concatenate([jnp.tanh(z[..., :1]), jnp.tanh(z[..., 1:])], -1))
    run = jaxnorm.linen.neuronwise(model)
    assert jax.eval_shape(run, init(model), X).shape == (6, 4, 4, 4)
