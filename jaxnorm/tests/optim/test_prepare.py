"""One call that sets up a state or an optimizer; the gradient that takes along the statistics."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm
from jaxnorm import Rule
from jaxnorm.linen import TrainState, init_statistics, neuronwise
from jaxnorm.linen.recording import Gradients
from jaxnorm.optim.update_statistics import Certain
from jaxnorm.statistics.tracked import Statistics

X = np.random.default_rng(0).normal(size=(16, 5)) + 2
Y = np.random.default_rng(1).normal(size=(16, 3))


class Net(nn.Module):
    """Two layers in float64."""

    @nn.compact
    def __call__(self, x):
        """Run it."""
        return nn.Dense(3, param_dtype=float)(nn.tanh(nn.Dense(8, param_dtype=float)(x)))


class Keyed(TrainState):
    """One field more."""

    key: jax.Array


PARAMS = jax.tree.map(np.float64, Net().init(jax.random.key(0), X)["params"])
RULE = Rule(decay=0.5)


def prepared(model=Net(), tx=optax.adam(0.01), cls=TrainState, **kwargs):
    return cls.prepare(model, PARAMS, tx, X, **{"rule": RULE, **kwargs})


def by_hand():
    """What `prepare` does, in parts."""
    apply = neuronwise(Net(), rule=RULE)
    return TrainState.create(
        apply_fn=apply,
        params=PARAMS,
        neuron_stats=init_statistics(apply, {"params": PARAMS}, X),
        tx=jaxnorm.in_neuron_coordinates(optax.adam(0.01)),
    )


def penalty(params):
    """As in Flax's examples; the average is of other parameters."""
    return sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if jnp.ndim(p) > 1)


@jax.jit
def step_by_hand(state):
    def loss(params, stats):
        out = state.apply_fn({"params": params, "neuron_stats": stats}, X)
        return jnp.sum((out - Y) ** 2) + penalty(params)

    grads, stats = jax.grad(loss, (0, 1))(state.params, state.neuron_stats)
    return state.apply_gradients(grads=grads, neuron_stats=stats)


@jax.jit
def step(state):
    def loss(params):
        out = state.apply_fn({"params": params}, X)
        return jnp.sum((out - Y) ** 2) + penalty(params)

    grads = state.grad(loss)(state.params)
    return state.apply_gradients(grads=grads), grads


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def parts(state):
    return state.params, state.opt_state, state.neuron_stats


@functools.cache
def steps():
    """(state, gradient) of a step."""
    return step(prepared())


def test_one_call_is_what_it_is_by_hand():
    """With a penalty on all parameters, which are parameters only."""
    apply = neuronwise(Net(), rule=RULE)
    apply({"params": PARAMS}, X)
    assert steps()[0].report == apply.report
    assert len(apply.report.converted) == 2
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    one, other = step(steps()[0])[0], step_by_hand(step_by_hand(by_hand()))
    jax.tree.map(close, jax.tree.leaves(parts(one)), jax.tree.leaves(parts(other)))


CHANGES = {
    "clipped": lambda grads: jax.tree.map(lambda g: jnp.clip(g, -0.5, 0.5), grads),
    "scaled": lambda grads: jax.tree.map(lambda g: 8 * g, grads),
    "by its norm": lambda grads: jax.tree.map(lambda g: g / optax.tree.norm(grads), grads),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_done_to_gradients_is_nothing_to_statistics(name):
    """They are in the same tree; norms and clipping are those of the parameters' gradient."""
    _, grads = steps()
    changed = CHANGES[name](grads)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, changed.params, CHANGES[name](grads.params))
    start = prepared_once().neuron_stats
    merged = [jaxnorm.update_statistics(start, each.neuron_stats) for each in (grads, changed)]
    jax.tree.map(close, *merged)


prepared_once = functools.cache(prepared)


def test_every_option_is_taken():
    """By the same names and with the same defaults, so that none is forgotten later."""
    beside = {neuronwise: {"model"}, jaxnorm.in_neuron_coordinates: {"inner"}}
    beside |= {jaxnorm.nnx.convert: {"model", "example_input"}}
    for function, parts_of in (
        (TrainState.prepare, (neuronwise, jaxnorm.in_neuron_coordinates)),
        (jaxnorm.linen.prepare, (neuronwise, jaxnorm.in_neuron_coordinates)),
        (jaxnorm.nnx.prepare, (jaxnorm.nnx.convert, jaxnorm.in_neuron_coordinates)),
    ):
        taken = inspect.signature(function).parameters
        for part in parts_of:
            for name, parameter in inspect.signature(part).parameters.items():
                assert name in beside[part] or taken[name].default == parameter.default, name


def test_options_reach_the_layers():
    state = prepared(gates={"*": "relu"}, skip=["Dense_1"], cls=Keyed, key=jax.random.key(0))
    assert type(state) is Keyed
    assert state.report["Dense_0"].gate == "relu"
    assert [row.reason for row in state.report.left] == ["skipped"]
    assert list(state.neuron_stats) == ["Dense_0"]
    found = prepared(skip=["Dense_0"])
    assert [(row.layer, row.reason) for row in found.report.left] == [("Dense_0", "skipped")]
    with pytest.raises(ValueError, match="matches no layer"):
        prepared(skip=["nowhere"])
    off = prepared(frozen={"Dense_0": True, "Dense_1": False})
    off = off.apply_gradients(grads=steps()[1])
    same(off.params["Dense_0"], PARAMS["Dense_0"])
    assert not jnp.array_equal(off.params["Dense_1"]["kernel"], PARAMS["Dense_1"]["kernel"])


class Normalized(nn.Module):
    """With a normalization and dropout."""

    @nn.compact
    def __call__(self, x, train):
        """Run it."""
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.Dropout(0.1, deterministic=not train)(nn.relu(x)))


def test_models_with_collections_and_keywords():
    """Which `example_kwargs` brings; and a state whose parameters are all the variables."""
    variables = Normalized().init(jax.random.key(0), X, train=False)
    kwargs = {"example_kwargs": {"train": True, "rngs": {"dropout": jax.random.key(1)}}}
    rest = {"batch_stats": variables["batch_stats"]}
    state = TrainState.prepare(
        Normalized(), variables["params"], optax.sgd(0.1), X, **kwargs, **rest
    )
    assert state.batch_stats is variables["batch_stats"]
    assert state.report["Dense_0"].deferred
    with pytest.raises(ValueError, match=r"params: got \['batch_stats', 'params'\], expected the"):
        TrainState.prepare(Normalized(), variables, optax.sgd(0.1), X, **kwargs)
    whole = TrainState.prepare(Net(), {"params": PARAMS}, optax.adam(0.01), X, rule=RULE)
    grads = whole.grad(lambda p: jnp.sum((whole.apply_fn(p, X) - Y) ** 2))(whole.params)
    whole = whole.apply_gradients(grads=grads)
    assert not jnp.array_equal(jax.tree.leaves(whole.params)[0], jax.tree.leaves(PARAMS)[0])


def test_transformations_with_the_coordinates_in_them():
    """Are taken as they are: the clipping is that of the plain gradient then."""
    tx = optax.chain(optax.clip(0.1), jaxnorm.in_neuron_coordinates(optax.adam(0.01)))
    assert prepared(tx=tx).tx is tx
    with pytest.raises(ValueError, match="frozen: got it beside a transformation that contains"):
        prepared(tx=tx, frozen=True)
    with pytest.raises(ValueError, match="inner: got one with ScaleByLBFGS"):
        prepared(tx=optax.lbfgs())


def test_layers_that_know_their_gate():
    model = jaxnorm.linen.Dense(3, gate=None, param_dtype=float)
    params = model.init(jax.random.key(0), X)["params"]
    state = TrainState.prepare(model, params, optax.sgd(0.1), X)
    assert [row.reason for row in state.report.left] == ["a layer of jaxnorm already"]
    grads = state.grad(lambda p: jnp.sum(state.apply_fn({"params": p}, X) ** 2))(params)
    assert not jnp.array_equal(
        state.apply_gradients(grads=grads).params["kernel"], params["kernel"]
    )


def test_a_loop_without_a_state():
    """The same steps, with the statistics in the state of the optimizer."""
    apply, tx = prepared_pair = jaxnorm.linen.prepare(Net(), PARAMS, optax.adam(0.01), X, rule=RULE)
    assert str(prepared_pair) == str(steps()[0].report)
    opt_state = tx.init(PARAMS)

    def loss(params):
        return jnp.sum((apply({"params": params}, X) - Y) ** 2) + penalty(params)

    @jax.jit
    def one(params, opt_state):
        grads = jaxnorm.linen.grad(loss, opt_state)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = one(PARAMS, opt_state)
    same((params, opt_state.inner_state, opt_state.neuron_stats), parts(steps()[0]))
    with pytest.raises(ValueError, match=r"grads: got a gradient without .*value_and_grad"):
        tx.update(PARAMS, opt_state, PARAMS)
    for wrong in (optax.adam(0.1).init(PARAMS), (opt_state, opt_state)):
        with pytest.raises(ValueError, match=r"opt_state: got one with [02] of .*tx\.init"):
            jaxnorm.linen.value_and_grad(loss, wrong)
    with pytest.raises(ValueError, match=r"params: got \['other', 'params'\], expected the"):
        jaxnorm.linen.prepare(Net(), {"params": PARAMS, "other": {}}, optax.adam(0.01), X)


# --- Which calls record ---------------------------------------------------------------------------


def samples(state, loss, **kwargs):
    """How many samples the first layer has recorded."""
    grads = state.grad(loss, **kwargs)(state.params)
    stats = jaxnorm.update_statistics(state.neuron_stats, grads.neuron_stats)
    return stats["Dense_0"]["statistics"].samples


def test_calls_with_the_parameters_of_the_loss_record():
    """In whatever way they are made of them; those with other parameters do not."""
    state = prepared(rule=Rule())

    def of(params, x=X):
        return state.apply_fn({"params": params}, x).sum()

    def cast(params):
        return of(jax.tree.map(lambda p: p.astype("float32"), params))

    def average(params):
        return of(params) * of(state.params)

    def partly(params):
        return of({**params, "Dense_0": jax.lax.stop_gradient(params["Dense_0"])}, X[:8])

    def scanned(params):
        return jax.lax.map(lambda x: of(params, x) * of(state.params, x), X.reshape(2, 8, 5)).sum()

    def mapped(params):
        return jax.vmap(of, (None, 0))(params, X.reshape(2, 8, 5)).sum()

    def compiled(params):
        return jax.jit(lambda: average(params))()

    once = (of, cast, average, scanned, mapped, compiled)
    counts = {**dict.fromkeys(once, 16), partly: 8}
    found = jax.jit(lambda state: [samples(state, loss) for loss in counts])(state)
    assert found == list(counts.values())


def test_calls_with_what_else_is_differentiated_by_do_not_record():
    """As the second of two critics, which shares the apply function."""
    state = prepared(rule=Rule())

    def of(params, x=X):
        return state.apply_fn({"params": params}, x).sum()

    def cast(params):
        return jax.tree.map(lambda p: p.astype("float32"), params)

    def twins(params, other):
        return of(params) * of(other["critic"], X[:4])

    def mapped(params, other):
        both = lambda x: of(params, x) * of(other["critic"], x[:2])  # noqa: E731
        return jax.vmap(both)(X.reshape(2, 8, 5)).sum()

    def partly(params, other):
        return of({**params, "Dense_1": other["critic"]["Dense_1"]}, X[:8])

    def scaled(params, other):
        return of(cast(params)) * other["scale"] * other["x"].sum()

    @jax.jit
    def run(state, other):
        def samples(loss, other, argnums=(0, 1)):
            grads, _ = state.grad(loss, argnums)(*(state.params, other)[:: 1 - 2 * argnums[0]])
            stats = jaxnorm.update_statistics(state.neuron_stats, grads.neuron_stats)
            return stats["Dense_0"]["statistics"].samples

        rest = {name: other.pop(name) for name in ("scale", "x")}
        found = [samples(loss, other) for loss in (twins, mapped, partly)]
        swapped = samples(lambda other, params: twins(params, other), other, (1, 0))
        return [*found, swapped, samples(scaled, rest)]

    other = {"critic": state.params, "scale": 2.0, "x": X}
    assert run(state, other) == [16, 16, 8, 16, 16]
    text = r"params: got those that are computed in a loss .* by several arguments.*argnums"
    for loss in (lambda p, q: of(p) * of(cast(q)), lambda p, q: of(cast(p)) * of(q)):
        with pytest.raises(ValueError, match=text):
            state.grad(loss, (0, 1))(state.params, state.params)
    with pytest.raises(ValueError, match="loss: got one that does not call"):
        state.grad(lambda p, q: of(q), (0, 1))(state.params, state.params)


def test_calls_that_cannot_be_told_are_refused():
    """Rather than that nothing, or another network's samples, are recorded."""
    state, plain = prepared(rule=Rule()), Net()

    def loss(params):
        return state.apply_fn({"params": params}, X).sum()

    for hidden in (jax.jit(loss), jax.checkpoint(loss)):
        hidden(PARAMS)  # what was traced before does not matter
        with pytest.raises(ValueError, match=r"params: got those of a transformation .*argnums"):
            state.grad(hidden)(state.params)
    with pytest.raises(ValueError, match=r"loss: got one that does not call .*state\.apply_fn"):
        state.grad(lambda p: plain.apply({"params": p}, X).sum())(state.params)
    with pytest.raises(ValueError, match=r"loss: got one that does not call"):
        state.grad(lambda p: state.apply_fn({"params": PARAMS}, X).sum())(state.params)
    other = by_hand().replace(apply_fn=plain.apply)
    with pytest.raises(ValueError, match=r"apply_fn: got .*apply, expected one .*prepare"):
        other.grad(loss)
    with pytest.raises(ValueError, match=r"new: got None, .*state\.value_and_grad"):
        state.apply_gradients(grads=PARAMS)
    # And nothing of it is left behind.
    assert samples(state, loss) == 16


def test_remedy_of_hidden_calls():
    """The form by hand goes through `jax.checkpoint`."""
    state = prepared(rule=Rule())

    @jax.checkpoint
    def loss(params, neuron_stats):
        return state.apply_fn({"params": params, "neuron_stats": neuron_stats}, X).sum()

    _, stats = jax.grad(loss, (0, 1))(state.params, state.neuron_stats)
    stats = jaxnorm.update_statistics(state.neuron_stats, stats)
    assert stats["Dense_0"]["statistics"].samples == 16


def test_values_other_arguments_and_loss_scales():
    """What `jax.value_and_grad` takes, and what `DynamicScale` has of its own."""
    state = prepared()

    def loss(y, params, scale):
        out = state.apply_fn({"params": params}, X)
        return scale * jnp.sum((out - y) ** 2) + penalty(params), out

    (value, out), (grads, by_scale) = state.value_and_grad(loss, (1, 2), has_aux=True)(
        Y, state.params, 1.0
    )
    plain = jax.value_and_grad(loss, (1, 2), has_aux=True)(Y, state.params, 1.0)
    same(((value, out), (grads.params, by_scale)), plain)
    scaling = DynamicScale()
    using = scaling.value_and_grad
    scaling, finite, (again, _), scaled = state.value_and_grad(loss, 1, True, using=using)(
        Y, state.params, 1.0
    )
    assert bool(finite)
    np.testing.assert_allclose(again, value, rtol=1e-12)
    merged = [
        jaxnorm.update_statistics(state.neuron_stats, each.neuron_stats) for each in (grads, scaled)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *merged)


def test_statistics_that_are_asked_for_are_of_the_type_of_the_state():
    """So they add up in what is made of it, and then may be none: there is a branch."""
    state = prepared(tx=optax.sgd(0.1), rule=Rule())
    zeros = jax.tree.map(jnp.zeros_like, Gradients(state.params, state.neuron_stats))

    def run(state, statistics):
        def add(sums, rows):
            x, y = rows

            def loss(params):
                return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2) / 2

            grads = state.grad(loss, statistics=statistics)(state.params)
            assert jax.tree.structure(grads) == jax.tree.structure(zeros)
            # Whose type it is: that of the first keeps what needs no branch.
            return jax.tree.map(jnp.add, *((grads, sums) if statistics else (sums, grads))), 0

        halves = X.reshape(2, 8, 5), Y.reshape(2, 8, 3)
        return state.apply_gradients(grads=jax.lax.scan(add, zeros, halves)[0])

    asked, due = (jax.jit(functools.partial(run, statistics=each))(state) for each in (True, None))
    assert asked.neuron_stats["Dense_0"]["statistics"].samples == 16
    same(asked, due)
    # Nothing was taken, in a program that was made for what is certain.
    update = jax.jit(jaxnorm.update_statistics)
    certain = {
        name: {"statistics": each["statistics"].replace(interval=Certain(16))}
        for name, each in zeros.neuron_stats.items()
    }
    for statistics in (due.neuron_stats, state.neuron_stats):
        same(update(statistics, certain), jaxnorm.skip_statistics(statistics))


def test_means_over_devices():
    """Under `jax.vmap` and `jax.shard_map`: one mean of the gradient is all that a step needs."""

    def step(state, x, y, axis=None):
        def loss(params):
            return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

        grads = state.grad(loss)(state.params)
        return state.apply_gradients(grads=jax.lax.pmean(grads, axis) if axis else grads).params

    state, spread = prepared(tx=optax.sgd(0.1), rule=Rule()), functools.partial(step, axis="b")
    mesh = jax.make_mesh((2,), ("b",), axis_types=(AxisType.Auto,))
    specs = {"mesh": mesh, "in_specs": (P(), P("b"), P("b")), "out_specs": P()}
    mapped = jax.vmap(spread, (None, 0, 0), axis_name="b")

    @jax.jit
    def run(x, y):
        halves = mapped(state, *(a.reshape(2, 8, -1) for a in (x, y)))
        return (
            step(state, x, y),
            jax.tree.map(lambda a: a[0], halves),
            jax.shard_map(spread, check_vma=False, **specs)(state, x, y),
        )

    # With means far from zero: units of the hidden layer are saturated.
    whole, *others = run(X, Y)
    for each in others:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), each, whole
        )


def test_masks_in_losses():
    """Padding stays out of the statistics, in every form of the gradient."""
    model = jaxnorm.linen.Dense(3, gate=None, param_dtype=float)
    params = {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)}
    state = TrainState.prepare(model, params, optax.sgd(0.1), X)
    apply, tx = jaxnorm.linen.prepare(model, params, optax.sgd(0.1), X)
    layer = jaxnorm.nnx.Linear(5, 3, gate=None, param_dtype=float, rngs=nnx.Rngs(0))
    jaxnorm.nnx.init_statistics(layer, X)

    def loss(apply):
        def masked(params, mask):
            with jaxnorm.neuron_mask(mask):
                some = apply({"params": params}, X)
            return jnp.sum(some) + jnp.sum(apply({"params": params}, X[:4]))

        return masked

    by_state = state.grad(loss(state.apply_fn))
    by_hand = jaxnorm.linen.grad(loss(apply), tx.init(params))
    by_layer = jaxnorm.nnx.grad(loss(lambda variables, x: variables["params"](x)))

    @nnx.jit
    def run(layer, mask):
        grads = by_state(params, mask), by_hand(params, mask), by_layer(layer, mask)
        found = jax.tree.leaves(grads, is_leaf=lambda node: isinstance(node, Statistics))
        return [each.counted().samples for each in found if isinstance(each, Statistics)]

    for count in (11, 7):  # of one program
        assert run(layer, jnp.arange(16) < count) == [4 + count] * 3


# --- nnx ------------------------------------------------------------------------------------------


def nnx_net(kind=nnx.Linear, **kwargs):
    rngs = nnx.Rngs(0)
    layers = [kind(*io, rngs=rngs, param_dtype=float, **kwargs) for io in ((5, 8), (8, 3))]
    return nnx.Sequential(layers[0], nnx.tanh, layers[1])


def nnx_loss(model):
    return jnp.sum((model(X) - Y) ** 2)


def test_nnx_one_call_is_what_it_is_by_hand():
    model, other = nnx_net(), nnx_net()
    prepared = jaxnorm.nnx.prepare(model, optax.adam(0.01), X, rule=RULE)
    assert prepared == (model, prepared.optimizer)
    report = jaxnorm.nnx.convert(other, example_input=X, rule=RULE)
    assert prepared.report == report
    assert str(prepared) == str(report)
    jaxnorm.nnx.init_statistics(other, X)
    optimizer = jaxnorm.nnx.Optimizer(other, jaxnorm.in_neuron_coordinates(optax.adam(0.01)))

    @nnx.jit
    def by_hand(model, optimizer):
        by = nnx.DiffState(0, jaxnorm.nnx.PARAMS_AND_STATISTICS)
        optimizer.update(model, nnx.grad(nnx_loss, argnums=by)(model))

    @nnx.jit
    def step(model, optimizer):
        loss, grads = jaxnorm.nnx.value_and_grad(nnx_loss)(model)
        norms = optax.tree.norm(grads), optax.tree.norm(nnx.filter_state(grads, nnx.Param))
        optimizer.update(model, grads)
        return loss, norms

    for _ in range(2):
        by_hand(other, optimizer)
        _, norms = step(*prepared)
        assert norms[0] == norms[1]
    for one, hand in ((model, other), (prepared.optimizer, optimizer)):
        got, expected = (nnx.to_pure_dict(nnx.state(each)) for each in (one, hand))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got, expected)


def test_nnx_forms_of_grad():
    model = nnx_net(jaxnorm.nnx.Linear, gate=None)
    prepared = jaxnorm.nnx.prepare(model, optax.sgd(0.1), X)
    assert [row.reason for row in prepared.report.rows] == ["a layer of jaxnorm already"] * 2

    @jaxnorm.nnx.grad(argnums=(1, nnx.DiffState(0, nnx.PathContains("kernel"))), has_aux=True)
    def grads(scale, model):
        return scale["by"] * nnx_loss(model), scale

    by_model, _ = jaxnorm.nnx.grad(nnx_loss)(model), grads
    assert len(jax.tree.leaves(nnx.filter_state(by_model, jaxnorm.nnx.NeuronStats))) > 0
    value, some = jaxnorm.nnx.value_and_grad(
        nnx_loss, argnums=nnx.DiffState(0, nnx.PathContains("kernel"))
    )(model)
    assert value == nnx_loss(model)
    kinds = {path[-1] for path, _ in nnx.to_flat_state(some)}
    assert kinds == {"kernel", "neuron_stats"}


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"rule": "neuron"}, TypeError, "rule: got"),
        ({"rule": Rule(gradient="preconditioned")}, ValueError, "no layer records statistics"),
        ({"gates": {"nowhere": "relu"}}, ValueError, "matches no layer"),
        ({"skip": ["nowhere"]}, ValueError, "matches no layer"),
        ({"skip": ["*"]}, ValueError, "no layer records statistics"),
        ({"example_input": X[:, :3]}, TypeError, "dot_general"),
        ({"tx": optax.lbfgs()}, ValueError, "got one with ScaleByLBFGS"),
        ({"frozen": True, "tx": jaxnorm.in_neuron_coordinates(optax.sgd(1))}, ValueError, "frozen"),
    ],
)
def test_nnx_a_failure_leaves_the_model_as_it_was(given, kind, text):
    model = nnx_net()
    before, classes = nnx.graphdef(model), [type(layer) for layer in model.layers]
    with pytest.raises(kind, match=text):
        jaxnorm.nnx.prepare(model, **{"tx": optax.sgd(0.1), "example_input": X, **given})
    assert nnx.graphdef(model) == before
    assert [type(layer) for layer in model.layers] == classes
