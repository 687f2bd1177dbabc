"""Statistics are sums: over micro-batches, devices, calls of a layer; and stacks of layers."""

from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from jaxnorm import Rule
from jaxnorm.statistics.tracked import SCALARS
from jaxnorm.tests import nets
from jaxnorm.tests.nets import KINDS, error, make, some
from parity_tests.tolerances import GATE, SAME_STEP, VISIBLE

SGD = jaxnorm.in_neuron_coordinates(optax.sgd(1.0))
DOUBLE = {"param_dtype": jnp.float64}
RULE = Rule(decay=0.5)


merge = jax.jit(jaxnorm.update_statistics)


@jax.jit
def update(grads, params, stats):
    return SGD.update(grads, SGD.init(params), params, neuron_stats=stats)[0]


def whole(net, stats=None):
    """The update of the whole batch of 24."""
    stats = net.stats if stats is None else stats
    grads, batch = jax.jit(net.grads)(net.params, stats, *nets.data())
    return update(grads, net.params, merge(stats, batch))


@pytest.mark.parametrize(
    ("kind", "parts"),
    some(list(product(KINDS, (2, 24))), ("linen", 24), ("nnx converted", 2)),
)
def test_micro_batches_added(kind, parts):
    """Down to one sample each; and from the second step on, about the mean of the first."""
    net = make(kind)
    x, y = (a.reshape(parts, -1, a.shape[-1]) for a in nets.data())

    @jax.jit
    def added(stats):
        def body(total, part):
            grads = net.grads(net.params, stats, *part)
            return jax.tree.map(jnp.add, total, grads), None

        zeros = jax.tree.map(jnp.zeros_like, (net.params, stats))
        grads, batch = jax.lax.scan(body, zeros, (x, y))[0]
        stats = jaxnorm.update_statistics(stats, batch)
        return update(grads, net.params, stats), stats

    first, stats = added(net.stats)
    assert error(first, whole(net)) <= SAME_STEP
    second, _ = added(stats)
    assert error(second, whole(net, stats)) <= SAME_STEP


def test_micro_batches_added_convolution_and_error_weights():
    """Zero padding, and a weight that depends on the gradient."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((6, 5, 4, 3)) + 1, rng.standard_normal((6, 5, 4, 4))
    layer = jaxnorm.linen.Conv(4, (3, 3), gate="silu", rule=Rule(weighting="error"), **DOUBLE)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    params, stats = variables["params"], jaxnorm.linen.init_statistics(layer, variables, x)

    @jax.jit
    def grads(x, g):
        apply = lambda p, s: layer.apply({"params": p, "neuron_stats": s}, x)  # noqa: E731
        return jax.vjp(apply, params, stats)[1](g)

    def step(grads):
        return update(grads[0], params, merge(stats, grads[1]))

    parts = [grads(x[n : n + 1], g[n : n + 1]) for n in range(6)]
    assert error(step(jax.tree.map(lambda *a: sum(a), *parts)), step(grads(x, g))) <= SAME_STEP
    assert error(step(parts[0]), step(grads(x, g))) > VISIBLE


# --- Devices --------------------------------------------------------------------------------------


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


@pytest.mark.parametrize(
    ("kind", "axes"),
    some(list(product(KINDS, (AUTO, EXPLICIT))), ("linen converted", AUTO), ("nnx", EXPLICIT)),
)
def test_sharded_batch(kind, axes):
    """8 devices under jit: nothing to say."""
    net = make(kind, Rule(decay=0.5, statistics_every=2))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axes,))
    x, y = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in nets.data())
    everywhere = NamedSharding(mesh, P())
    args = jax.device_put((SGD.init(net.params), net.params, net.stats), everywhere)
    with jax.set_mesh(mesh):
        step = jax.jit(lambda *args: net.step(SGD, *args))
        args = step(*args, x, y)
        assert all(a.sharding.is_fully_replicated for a in jax.tree.leaves(args))
    expected = optax.apply_updates(net.params, whole(net))
    assert error(args[1], expected) <= SAME_STEP


OUT, IN = P(None, "model"), P("model", None)


@pytest.mark.parametrize(
    ("axes", "spec"), some(list(product((AUTO, EXPLICIT), (OUT, IN))), (EXPLICIT, OUT))
)
def test_sharded_parameters(axes, spec):
    """The change of coordinates keeps the shardings of the gradients."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axes, axes))
    rng = np.random.default_rng(0)
    layer = jaxnorm.nnx.Linear(8, 4, gate="silu", rngs=nnx.Rngs(0), **DOUBLE)
    x, g = rng.standard_normal((16, 8)) + 1, rng.standard_normal((16, 4))
    jaxnorm.nnx.init_statistics(layer, x)
    graph, params, stats = nnx.split(layer, nnx.Param, jaxnorm.nnx.NeuronStats)

    def step(params, x, g, out_sharding=None):
        def z(params, stats):
            return nnx.merge(graph, params, stats)(x, out_sharding=out_sharding)

        grads, batch = jax.vjp(z, params, stats)[1](g)
        return update(grads, params, jaxnorm.update_statistics(stats, batch))

    expected = jax.jit(step)(params, x, g)
    put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))  # noqa: E731
    z_spec = P("data", spec[1])
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda a: put(a, spec if a.ndim > 1 else P(spec[1])), params)
        out = z_spec if axes is EXPLICIT else None
        args = (params, put(x, P("data", spec[0])), put(g, z_spec))
        updates = jax.jit(step, static_argnums=3)(*args, out)
    assert error(updates, expected) <= SAME_STEP
    if axes is EXPLICIT:
        kinds = [jax.tree.map(lambda a: a.sharding.spec, tree) for tree in (updates, params)]
        assert jax.tree.leaves(kinds[0]) == jax.tree.leaves(kinds[1])


@pytest.mark.parametrize(
    ("kind", "check", "every"),
    some(
        list(product(("linen", "nnx"), (True, False), (1, 2))),
        ("linen", True, 1),
        ("nnx", True, 2),
        ("nnx", False, 1),
    ),
)
def test_shard_map(kind, check, every):
    """With check_vma JAX adds the gradients itself; without it the user does."""
    net = make(kind, Rule(decay=0.5, statistics_every=every))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AUTO,))

    def step(params, stats, x, y):
        grads, batch = net.grads(params, stats, x, y)
        if not check:
            grads = jax.lax.psum(grads, "data")
        axis_name = None if check else "data"
        return grads, jaxnorm.update_statistics(stats, batch, axis_name=axis_name)

    specs = (P(), P(), P("data"), P("data"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check)
    grads, stats = jax.jit(mapped)(net.params, net.stats, *nets.data())
    assert error(update(grads, net.params, stats), whole(net)) <= SAME_STEP


@pytest.mark.parametrize("stats_too", [False, True])
def test_each_device_makes_a_step_of_its_rows(stats_too):
    """As where models are averaged now and then: replicated parameters, gradients that are not."""
    net, tx = make("linen"), jaxnorm.in_neuron_coordinates(optax.adamw(0.01))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AUTO,))

    def step(params, stats, x, y, varying=lambda tree: tree):
        at = varying(params), varying(stats) if stats_too else stats
        grads, batch = net.grads(*at, x, y)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, _ = tx.update(grads, tx.init(params), params, neuron_stats=stats)
        return jax.tree.map(lambda a: a[None], updates)

    def each(*args):
        return step(*args, lambda t: jax.tree.map(lambda a: lax.pcast(a, "data", to="varying"), t))

    specs = (P(), P(), P("data"), P("data"))
    found = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P("data")))
    x, y = nets.data()
    updates = jax.tree.map(lambda a: a[1:2], found(net.params, net.stats, x, y))
    kernels = jax.tree.leaves(updates)
    assert all(bool(jnp.isfinite(kernel).all() & kernel.any()) for kernel in kernels)
    if stats_too:
        expected = jax.jit(step)(net.params, net.stats, x[3:6], y[3:6])
        assert error(updates, expected) <= SAME_STEP


def test_vmap_over_shards():
    net = make("linen")
    x, y = (a.reshape(4, 6, -1) for a in nets.data())

    def step(x, y):
        grads, batch = net.grads(net.params, net.stats, x, y)
        stats = jaxnorm.update_statistics(net.stats, batch, axis_name="shards")
        return update(jax.lax.psum(grads, "shards"), net.params, stats)

    updates = jax.jit(jax.vmap(step, axis_name="shards"))(x, y)
    assert error(jax.tree.map(lambda a: a[3], updates), whole(net)) <= SAME_STEP


# --- Calls and stacks of layers -------------------------------------------------------------------


def linen_update(model, x, y, variables=None):
    """(updates, statistics) of the first step."""
    variables = variables or jax.jit(model.init)(jax.random.key(0), x)
    stats = jaxnorm.linen.init_statistics(model, variables, x)

    def loss(params, stats):
        out = model.apply({"params": params, "neuron_stats": stats}, x)
        return jnp.sum((out - y) ** 2) / 2

    grads, batch = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], stats)
    stats = merge(stats, batch)
    return update(grads, variables["params"], stats), stats


class Block(nn.Module):
    """Residual, so that four in a row stay alive."""

    @nn.compact
    def __call__(self, x, _=None):
        """Apply it."""
        return x + 0.5 * nn.silu(jaxnorm.linen.Dense(5, gate="silu", rule=RULE, **DOUBLE)(x)), None


class Stack(nn.Module):
    """Four blocks, one by one, scanned, or in a lifted remat."""

    mode: str

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        if self.mode == "scan":
            axes = {"params": 0, "neuron_stats": 0}
            scan = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=4)
            return scan(name="blocks")(x, None)[0]
        block = nn.remat(Block) if self.mode == "remat" else Block
        for n in range(4):
            x, _ = block(name=f"blocks_{n}")(x)
        return x


def stacked(params):
    """Parameters of the blocks in a row as those of the scan."""
    return {
        "blocks": jax.tree.map(lambda *a: jnp.stack(a), *(params[f"blocks_{n}"] for n in range(4)))
    }


def targets():
    x, _ = nets.data()
    return x, jnp.flip(x, -1)


def test_layers_in_a_scan():
    """Each of the stacked layers in coordinates of its own."""
    variables = jax.jit(Stack("row").init)(jax.random.key(0), targets()[0])
    expected, _ = linen_update(Stack("row"), *targets(), variables)
    scanned = {"params": stacked(variables["params"])}
    actual, stats = linen_update(Stack("scan"), *targets(), scanned)
    assert stats["blocks"]["Dense_0"]["statistics"].scalars.shape == (4, len(SCALARS))
    assert error(actual, stacked(expected)) <= SAME_STEP


def test_layers_in_a_scan_of_nnx():
    x, y = targets()
    variables = jax.jit(Stack("row").init)(jax.random.key(0), x)
    expected, _ = linen_update(Stack("row"), x, y, variables)
    weights = stacked(variables["params"])["blocks"]["Dense_0"]

    class Model(nnx.Module):
        def __init__(self, rngs):
            kwargs = {"gate": "silu", "rule": RULE, **DOUBLE}

            @nnx.split_rngs(splits=4)
            @nnx.vmap
            def make(rngs):
                return jaxnorm.nnx.Linear(5, 5, rngs=rngs, **kwargs)

            self.stack = make(rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def run(x, layer):
                return x + 0.5 * jax.nn.silu(layer(x))

            return run(x, self.stack)

    model = Model(nnx.Rngs(0))
    nnx.update(model.stack, weights)
    jaxnorm.nnx.init_statistics(model, x)
    optimizer = jaxnorm.nnx.Optimizer(model, SGD)
    by = nnx.DiffState(0, jaxnorm.nnx.PARAMS_AND_STATISTICS)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.sum((model(x) - y) ** 2) / 2, argnums=by)(model)
        optimizer.update(model, grads)

    step(model, optimizer)
    actual = {name: getattr(model.stack, name)[...] - weights[name] for name in weights}
    assert error(actual, stacked(expected)["blocks"]["Dense_0"]) <= SAME_STEP


def test_a_kernel_that_is_not_stacked_like_its_statistics():
    variables = jax.jit(Stack("row").init)(jax.random.key(0), targets()[0])
    scanned = stacked(variables["params"])
    updates, stats = linen_update(Stack("scan"), *targets(), {"params": scanned})
    turned = jax.tree.map(lambda a: a[:3], updates)
    with pytest.raises(ValueError, match=r"neuron_stats: got statistics of shape .* of another"):
        update(turned, turned, stats)


def test_remat():
    variables = jax.jit(Stack("row").init)(jax.random.key(0), targets()[0])
    expected, _ = linen_update(Stack("row"), *targets(), variables)
    actual, _ = linen_update(Stack("remat"), *targets(), variables)
    assert error(actual, expected) <= GATE["float64"]
    # And around the whole.
    net = make("linen")
    again = net._replace(apply=jax.checkpoint(net.apply))
    assert error(whole(again), whole(net)) <= GATE["float64"]


class Twice(nn.Module):
    """One layer on two halves of the batch, or once on all of it."""

    calls: int

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        layer = jaxnorm.linen.Dense(5, gate="silu", rule=RULE, **DOUBLE)
        return jnp.concatenate([nn.silu(layer(part)) for part in jnp.split(x, self.calls)])


def test_a_layer_that_is_called_twice():
    """The same as once on both: a descent direction, unlike the sum of two adapted gradients."""
    once, stats = linen_update(Twice(1), *targets())
    twice, also = linen_update(Twice(2), *targets())
    assert error(twice, once) <= SAME_STEP
    assert float(also["Dense_0"]["statistics"].calls) == 1
    assert float(also["Dense_0"]["statistics"].samples) == float(
        stats["Dense_0"]["statistics"].samples
    )


def test_weights_shared_over_time():
    """A loop with the same weights in every round: broadcast, and added up."""

    class Cell(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Block()(x)

    class Loop(nn.Module):
        scanned: bool

        @nn.compact
        def __call__(self, x):
            if self.scanned:
                shared = ["params", "neuron_stats"]
                scan = nn.scan(
                    Cell, variable_broadcast=shared, split_rngs={"params": False}, length=3
                )
                return scan(name="cell")(x, None)[0]
            cell = Cell(name="cell")
            for _ in range(3):
                x, _ = cell(x, None)
            return x

    variables = jax.jit(Loop(False).init)(jax.random.key(0), targets()[0])
    expected, _ = linen_update(Loop(False), *targets(), variables)
    actual, _ = linen_update(Loop(True), *targets(), variables)
    assert error(actual, expected) <= SAME_STEP
