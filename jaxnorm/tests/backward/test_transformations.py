"""What the JAX side must survive: the list of JAX's own tests for custom_vjp, and sharding."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from jaxnorm import Rule, neuronwise_dense
from parity_tests.tolerances import DERIVATIVE, GATE, VISIBLE, slice_error

RULES = [
    Rule(),
    Rule(weighting="error"),
    Rule(weighting="uniform"),
    Rule(weighting="signed", scale="layer"),
    Rule(gradient="standardized"),
]
PRECONDITIONED = Rule(gradient="preconditioned")
SCALES = np.array([1.0, 10.0, 0.1])


def arrays(rows=32):
    """X [N,I], kernel [I,O], bias [O] and a cotangent [N,O] in float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)) * SCALES + [0, 30, 1]
    kernel = rng.normal(size=(3, 4))
    bias = -(x @ kernel).mean(0)  # about half of the samples are active
    return x, kernel, bias, rng.normal(size=(rows, 4))


def loss(kernel, bias, x, g_z, rule=Rule(), axis_name=None):
    """A loss whose gradient at z is g_z."""
    z = neuronwise_dense(x, kernel, bias, gate="gelu", rule=rule, axis_name=axis_name)
    return jnp.sum(z * g_z)


gradients = jax.grad(loss, argnums=(0, 1, 2))


def assert_same(actual, expected, gate=GATE["float64"]):
    """Every array within the gate, per neuron; a bias vector is one slice."""
    for a, e in zip(actual, expected, strict=True):
        assert slice_error(a, e, axes=(-1,) if e.ndim > 1 else ()) <= gate


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_jit_in_every_order(rule):
    x, kernel, bias, g_z = arrays()
    expected = gradients(kernel, bias, x, g_z, rule)
    assert_same(jax.jit(gradients)(kernel, bias, x, g_z, rule), expected)
    assert_same(jax.grad(jax.jit(loss), (0, 1, 2))(kernel, bias, x, g_z, rule), expected)
    assert_same(jax.grad(jax.checkpoint(loss), (0, 1, 2))(kernel, bias, x, g_z, rule), expected)


def test_second_call_does_not_compile_again():
    x, kernel, bias, g_z = arrays()
    traced = []
    step = jax.jit(lambda *arguments: traced.append(1) or gradients(*arguments))
    step(kernel, bias, x, g_z, Rule())
    step(kernel + 1, bias, x, g_z, Rule(damping=0.3))  # another value of a continuous knob
    assert len(traced) == 1
    step(kernel, bias, x, g_z, Rule(scale="layer"))  # another member of the family
    assert len(traced) == 2


@pytest.mark.parametrize("knob", ["shrinkage", "damping", "epsilon"])
def test_a_sweep_over_a_knob_is_one_vmap(knob):
    x, kernel, bias, g_z = arrays()
    values = jnp.array([0.01, 1.0, 30.0])
    swept = jax.vmap(lambda v: gradients(kernel, bias, x, g_z, Rule(**{knob: v})))(values)
    for k, value in enumerate(values):
        one = gradients(kernel, bias, x, g_z, Rule(**{knob: float(value)}))
        assert_same([a[k] for a in swept], one)
    assert slice_error(swept[0][0], swept[0][2]) > VISIBLE


def test_knobs_get_no_gradient():
    x, kernel, bias, g_z = arrays()
    rule = jax.grad(loss, argnums=4)(kernel, bias, x, g_z, Rule())
    assert (rule.shrinkage, rule.damping, rule.epsilon) == (0, 0, 0)


def test_vmap_takes_the_statistics_of_each_example():
    x, kernel, bias, g_z = arrays()
    xs, gs = x.reshape(4, 8, 3), g_z.reshape(4, 8, 4)
    one = jax.jit(gradients)
    mapped = jax.jit(jax.vmap(gradients, (None, None, 0, 0)))(kernel, bias, xs, gs)
    for k in range(4):
        assert_same([a[k] for a in mapped], one(kernel, bias, xs[k], gs[k]))
    whole = one(kernel, bias, x, g_z)
    assert slice_error(mapped[0].sum(0), whole[0]) > VISIBLE  # documented: not the same


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_vmap_with_a_named_axis_takes_those_of_all(rule):
    x, kernel, bias, g_z = arrays()
    named = jax.vmap(
        lambda x, g_z: gradients(kernel, bias, x, g_z, rule, "batch"), axis_name="batch"
    )
    g_w, g_b, g_x = named(x.reshape(4, 8, 3), g_z.reshape(4, 8, 4))
    expected = gradients(kernel, bias, x, g_z, rule)
    assert_same((g_w.sum(0), g_b.sum(0), g_x.reshape(32, 3)), expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    "rule", [*RULES, *(Rule(statistics_rows=rows) for rows in (3, 8))], ids=str
)
def test_jit_on_a_sharded_batch_is_the_whole_batch(kind, rule):
    x, kernel, bias, g_z = arrays()
    expected = gradients(kernel, bias, x, g_z, rule)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows, whole = NamedSharding(mesh, P("data", None)), NamedSharding(mesh, P())
        sharded = [jax.device_put(a, rows) for a in (x, g_z)]
        copied = [jax.device_put(a, whole) for a in (kernel, bias)]
        got = jax.jit(gradients)(*copied, *sharded, rule)
    assert_same(got, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_jit_with_sharded_parameters(kind):
    x, kernel, bias, g_z = arrays()
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        specs = (P(None, "model"), P("model"), P("data", None), P("data", "model"))
        placed = [
            jax.device_put(a, NamedSharding(mesh, spec))
            for a, spec in zip((kernel, bias, x, g_z), specs, strict=True)
        ]
        got = jax.jit(gradients)(*placed)
    assert_same(got, gradients(kernel, bias, x, g_z))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_shard_map_with_a_named_axis_is_the_whole_batch(check_vma, rule):
    x, kernel, bias, g_z = arrays()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def local(kernel, bias, x, g_z):
        g_w, g_b, g_x = gradients(kernel, bias, x, g_z, rule, "data")
        if not check_vma:  # with check_vma JAX has summed the gradients of replicated arrays
            g_w, g_b = jax.lax.psum((g_w, g_b), "data")
        return g_w, g_b, g_x

    shards = (P(), P(), P("data"), P("data"))
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=shards, out_specs=(P(), P(), P("data")), check_vma=check_vma
    )
    assert_same(jax.jit(mapped)(kernel, bias, x, g_z), gradients(kernel, bias, x, g_z, rule))


def test_shard_map_without_a_name_is_local():
    x, kernel, bias, g_z = arrays()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shards = (P(), P(), P("data"), P("data"))
    local = jax.shard_map(lambda *a: gradients(*a)[0], mesh=mesh, in_specs=shards, out_specs=P())
    found, expected = (jax.jit(f)(kernel, bias, x, g_z) for f in (local, gradients))
    assert slice_error(found, expected[0]) > VISIBLE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scan_keeps_every_dtype(dtype):
    # A cotangent of the wrong dtype is accepted in silence everywhere but here.
    x = jnp.asarray(arrays()[0], dtype)
    params = jnp.ones((3, 3), dtype), jnp.zeros(3, dtype)

    def run(params):
        def body(carry, _):
            return jnp.tanh(neuronwise_dense(carry, *params, gate="tanh")).astype(dtype), None

        return jnp.sum(jax.lax.scan(body, x, None, length=3)[0].astype("float32"))

    assert [g.dtype.name for g in jax.jit(jax.grad(run))(params)] == [dtype, dtype]


def test_mixed_dtypes_promote_as_the_framework_does():
    x, kernel, bias, g_z = arrays()
    mixed = x.astype("float16"), kernel.astype("float32"), bias.astype("float64")
    layer = lambda *a: neuronwise_dense(*a, gate="relu")  # noqa: E731
    z, pull = jax.vjp(layer, *mixed)
    assert z.dtype == "float64"
    assert [g.dtype.name for g in pull(jnp.asarray(g_z))] == ["float16", "float32", "float64"]


def test_forward_mode_is_refused_and_plain_is_not():
    x, kernel, bias, _ = arrays()

    def run(kernel, rule):
        return neuronwise_dense(x, kernel, bias, gate="relu", rule=rule)

    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda k: run(k, Rule()), (kernel,), (kernel,))
    jax.jvp(lambda k: run(k, jaxnorm.PLAIN), (kernel,), (kernel,))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit], ids=["", "remat", "jit"])
def test_gates_may_close_over_what_is_learned(wrap):
    x, kernel, bias, g_z = arrays()

    def run(slope, kernel):
        gate = lambda z: jnp.where(z > 0, z, slope * z)  # noqa: E731
        z = neuronwise_dense(x, kernel, bias, gate=gate)
        return jnp.sum(gate(z) * g_z)

    learned = jax.grad(wrap(run), (0, 1))(0.25, kernel)
    fixed = jax.grad(lambda k: run(0.25, k))(kernel)
    assert slice_error(learned[1], fixed) <= GATE["float64"]
    z = x @ kernel + bias
    expected = np.sum(np.where(z > 0, 0, z) * g_z)  # through the activation alone
    assert slice_error(learned[0][None], expected[None]) <= GATE["float64"]


def test_sizes_of_zero():
    for inputs, outputs, rows in ((0, 4, None), (3, 0, None), (0, 4, 2), (3, 0, 2)):
        rule = Rule(statistics_rows=rows)
        x, kernel, bias = jnp.ones((5, inputs)), jnp.ones((inputs, outputs)), jnp.zeros(outputs)
        gradient = jax.grad(
            lambda k, x=x, b=bias, r=rule: neuronwise_dense(x, k, b, gate="relu", rule=r).sum()
        )
        assert jax.jit(gradient)(kernel).shape == kernel.shape


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_nnx_preferred_element_type(dtype):
    x = arrays()[0].astype("float32")
    layer = jaxnorm.nnx.Linear(
        3,
        4,
        gate="relu",
        rule=PRECONDITIONED,
        preferred_element_type=jnp.dtype(dtype),
        rngs=nnx.Rngs(0),
    )
    grads = nnx.jit(nnx.grad(lambda m: jnp.sum(m(x).astype("float32") ** 2)))(layer)
    assert bool(jnp.all(jnp.isfinite(grads.kernel[...])))


def test_second_derivatives_are_those_of_the_adapted_gradient():
    x, kernel, bias, g_z = arrays()

    def penalty(kernel):
        def inner(kernel):
            return jnp.sum(jnp.tanh(neuronwise_dense(x, kernel, bias, gate="tanh")) * g_z)

        return jnp.sum(jax.grad(inner)(kernel) ** 2)

    kernel = 0.1 * kernel
    direction = np.random.default_rng(5).normal(size=kernel.shape)
    step = DERIVATIVE.step * direction
    expected = (penalty(kernel + step) - penalty(kernel - step)) / (2 * DERIVATIVE.step)
    got = jnp.sum(jax.grad(penalty)(kernel) * direction)
    assert abs(got / expected - 1) <= VISIBLE


@pytest.mark.filterwarnings("ignore:The Fp8DotGeneralOp is deprecated")
def test_products_with_state_are_refused():
    layer = jaxnorm.linen.Dense(4, gate="relu", dot_general_cls=nn.Fp8DotGeneralOp)
    with pytest.raises(TypeError, match="dot_general_cls: got the module Fp8DotGeneralOp"):
        layer.init(jax.random.key(0), arrays()[0])


@pytest.mark.parametrize("lift", [nn.jit, nn.remat], ids=["jit", "remat"])
def test_linen_lifted_transformations(lift):
    x, _, _, g_z = arrays()

    class Net(nn.Module):
        dense: type[nn.Module]

        @nn.compact
        def __call__(self, x):
            x = nn.relu(self.dense(8, gate="relu", rule=PRECONDITIONED, name="first")(x))
            return self.dense(4, gate=None, rule=PRECONDITIONED, name="second")(x)

    plain, lifted = Net(jaxnorm.linen.Dense), Net(lift(jaxnorm.linen.Dense))
    variables = plain.init(jax.random.key(0), x)
    grads = [
        jax.jit(jax.grad(lambda v, n=n: jnp.sum(n.apply(v, x) * g_z)))(variables)
        for n in (plain, lifted)
    ]
    assert_same(jax.tree.leaves(grads[1]), jax.tree.leaves(grads[0]))


def test_linen_scan_and_vmap_over_layers():
    x = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(jaxnorm.linen.Dense(3, gate="tanh", rule=PRECONDITIONED)(x)), None

    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)()
    variables = stack.init(jax.random.key(0), x, None)
    grads = jax.jit(jax.grad(lambda v: jnp.sum(stack.apply(v, x, None)[0] ** 2)))(variables)
    assert grads["params"]["Dense_0"]["kernel"].shape == (4, 3, 3)

    def unrolled(v, x):
        for k in range(4):
            layer = jax.tree.map(lambda a, k=k: a[k], v["params"]["Dense_0"])
            x = jnp.tanh(neuronwise_dense(x, layer["kernel"], layer["bias"], gate="tanh"))
        return jnp.sum(x**2)

    expected = jax.jit(jax.grad(unrolled))(variables, x)
    kernels = [g["params"]["Dense_0"]["kernel"] for g in (grads, expected)]
    assert slice_error(*kernels) <= GATE["float32"]


def test_linen_axis_name_is_ignored_at_initialization():
    x = arrays()[0]
    layer = jaxnorm.linen.Dense(4, gate="relu", rule=PRECONDITIONED, axis_name="batch")
    variables = layer.init(jax.random.key(0), x)
    mapped = jax.vmap(lambda x: layer.apply(variables, x), axis_name="batch")
    assert mapped(x.reshape(4, 8, 3)).shape == (4, 8, 4)


def test_rule_is_a_pytree_with_static_structure():
    leaves, structure = jax.tree.flatten(Rule(damping=0.3))
    assert leaves == [8.0, 0.3, 0.0, 0.0]
    assert jax.tree.unflatten(structure, leaves) == Rule(damping=0.3)
    assert jax.tree.structure(Rule()) == structure != jax.tree.structure(Rule(scale="layer"))
    assert jax.tree.map(lambda _: None, Rule()).damping is None  # placeholders are let through
    assert str(jax.tree.map(lambda _: jnp.ones(3), Rule())).startswith("Rule(shrinkage=")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rule().damping = 1.0  # type: ignore[misc]


def test_strict_rank_promotion():
    x, kernel, bias, g_z = arrays()
    with jax.numpy_rank_promotion("raise"):
        assert_same(gradients(kernel, bias, x, g_z)[:2], gradients(kernel, bias, x, g_z)[:2])
