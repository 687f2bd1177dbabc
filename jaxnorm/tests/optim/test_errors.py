"""What the Optax side refuses, and what it says; frozen parameters, which it must not refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import jaxnorm
from jaxnorm import Rule
from jaxnorm.tests import nets
from jaxnorm.tests.nets import error, make
from parity_tests.tolerances import GATE

SGD = jaxnorm.in_neuron_coordinates(optax.sgd(1.0))


@pytest.fixture(scope="module")
def net():
    return make("linen")


@pytest.fixture(scope="module")
def first(net):
    """(grads, statistics of the batch, merged) of the first step."""
    grads, batch = jax.jit(net.grads)(net.params, net.stats, *nets.data())
    return grads, batch, jaxnorm.update_statistics(net.stats, batch)


def update(grads, params, stats, tx=SGD):
    return tx.update(grads, tx.init(params), params, neuron_stats=stats)[0]


def _other(stats, name, **fields):
    return {**stats, name: {"statistics": stats[name]["statistics"].replace(**fields)}}


def _unusable(stats, name):
    """As if it had never been called with more than one sample."""
    return _other(stats, name, parts=jnp.zeros((16, 16)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: None, "neuron_stats: got None, expected the statistics"),
        (lambda s: {}, "neuron_stats: got no layer, expected at least one"),
        (lambda s: {"neuron_stats": s}, "got statistics of 'neuron_stats/Dense_0', expected only"),
        (lambda s: {"Conv_0": s["Dense_0"]}, "got statistics of 'Conv_0', expected only of layers"),
        (lambda s: {**s, "Dense_2": s["Dense_1"]}, "got statistics of 'Dense_2', expected only"),
        (
            lambda s: {"Dense_0": s["Dense_1"], "Dense_1": s["Dense_0"]},
            r"got statistics of shape \(8, 1\) for 'Dense_0', expected such as fit its kernel, "
            r"\(5, 8\)",
        ),
        (
            lambda s: jax.tree.map(lambda a: jnp.stack([a, a]), s),
            r"got statistics of shape \(2, 5, 8\) for 'Dense_0'.* of another model",
        ),
        (
            lambda s: jax.tree.map(jnp.zeros_like, s),
            "got statistics of 'Dense_0' that were never updated.* update_statistics first",
        ),
        (
            lambda s: _other(s, "Dense_0", origin=None),
            "got statistics without means for 'Dense_0', expected those of a layer with a bias",
        ),
    ],
)
def test_statistics_that_do_not_fit(net, first, change, text):
    grads, _, stats = first
    with pytest.raises(ValueError, match=text):
        update(grads, net.params, change(stats))


def test_a_layer_without_usable_statistics_makes_no_step(net, first):
    """Under jit, where nothing can be raised; whatever else is stepped, is."""
    grads, batch, stats = first
    expected = jax.jit(update)(grads, net.params, stats)
    unusable = _unusable(stats, "Dense_0")
    every = ("Dense_0", "Dense_1")
    for bad, layers in ((net.stats, every), (batch, every), (unusable, ("Dense_0",))):
        updates = jax.jit(update)(grads, net.params, bad)
        for name in updates:
            if name in layers:
                assert not any(a.any() for a in jax.tree.leaves(updates[name]))
            else:
                assert error(updates[name], expected[name]) <= GATE["float64"]


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (None, {}, "old: got None, expected a tree of statistics"),
        ("same", None, "new: got None, expected a tree of statistics; differentiate the loss"),
        ("same", {}, "new: got statistics of no layer, expected of 'Dense_0', 'Dense_1'"),
        ("first", "same", "got statistics of 'Dense_0', 'Dense_1', expected of 'Dense_0'"),
    ],
)
def test_update_statistics_refuses(net, first, old, new, text):
    known = {"same": first[1], "first": {"Dense_0": first[1]["Dense_0"]}}
    old, new = (known.get(each, each) if isinstance(each, str) else each for each in (old, new))
    with pytest.raises(ValueError, match=text):
        jaxnorm.update_statistics(old, new)


def test_update_statistics_refuses_other_widths(first):
    other = _other(first[1], "Dense_0", center=jnp.zeros(6))
    with pytest.raises(ValueError, match=r"new: got \{.*\(6,\).*\} for 'Dense_0', expected \{"):
        jaxnorm.update_statistics(first[1], other)


@pytest.mark.parametrize(
    "kwargs",
    [{"use_bias": False}, {"features": 7}, {"rule": Rule(scale="layer")}, {"gate": None}],
)
def test_a_layer_refuses_statistics_of_another(kwargs):
    """Before anything is computed with them."""
    x = jnp.ones((4, 5))
    usual = {"features": 3, "gate": "relu"}
    layer = jaxnorm.linen.Dense(**usual)
    other = jaxnorm.linen.Dense(**(usual | kwargs))
    for one, two in ((layer, other), (other, layer)):
        variables = one.init(jax.random.key(0), x)
        stats = jaxnorm.linen.init_statistics(two, two.init(jax.random.key(0), x), x)
        with pytest.raises(ValueError, match=r"neuron_stats: got .*, expected .*init_statistics"):
            one.apply({**variables, "neuron_stats": stats}, x)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(0.1),
        optax.sgd(0.1),
        optax.masked(optax.adam(0.1), True),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        optax.apply_if_finite(optax.adam(0.1), 3),
        optax.MultiSteps(optax.adam(0.1), 2),
        optax.polyak_sgd(0.1),
    ],
)
def test_optimizers_that_would_ignore_the_statistics(net, tx):
    """However they are wrapped, and whether or not they take extra arguments."""
    text = "tx: got a transformation that takes no statistics, expected"
    kwargs = {"apply_fn": None, "params": net.params, "tx": tx}
    with pytest.raises(ValueError, match=text):
        jaxnorm.linen.TrainState.create(**kwargs, neuron_stats=net.stats)
    if not isinstance(tx, optax.MultiSteps):
        with pytest.raises(ValueError, match=text):
            jaxnorm.nnx.Optimizer(nets.nnx_model(), tx)


def test_states_without_statistics(net, first):
    with pytest.raises(ValueError, match=r"neuron_stats: got None, expected .*init_statistics"):
        jaxnorm.linen.TrainState.create(apply_fn=None, params=net.params, tx=SGD)
    state = jaxnorm.linen.TrainState.create(
        apply_fn=None, params=net.params, tx=SGD, neuron_stats=net.stats
    )
    with pytest.raises(ValueError, match="new: got None"):
        state.apply_gradients(grads=first[0])
    model = nets.nnx_model()
    for layer in model.layers:
        del layer.neuron_stats
    with pytest.raises(ValueError, match="model: got one without statistics, expected"):
        jaxnorm.nnx.Optimizer(model, SGD)


def test_nnx_gradients_without_statistics_change_nothing():
    x, y = nets.data()
    model = nets.nnx_model()
    optimizer = jaxnorm.nnx.Optimizer(model, SGD)
    before = jax.tree.map(jnp.copy, nnx.state((model, optimizer)))
    grads = nnx.grad(lambda model: jnp.sum((model(x) - y) ** 2))(model)
    with pytest.raises(ValueError, match=r"no layer, expected of 'layers/0', .*argnums"):
        optimizer.update(model, grads)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, nnx.state((model, optimizer)))
    assert jax.tree.all(same)


@pytest.mark.parametrize(
    "inner",
    [
        optax.lbfgs(),
        optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5)),
        optax.masked(optax.scale_by_zoom_linesearch(5), True),
        optax.contrib.schedule_free_adamw(0.1),
        optax.contrib.prodigy(),
        optax.contrib.dog(),
        optax.contrib.dowg(),
        optax.contrib.cocob(),
        optax.contrib.mechanize(optax.sgd(0.1)),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
    ],
)
def test_optimizers_that_need_more_than_gradients(net, inner):
    with pytest.raises(ValueError, match=r"inner: got one .*, expected one that needs grad"):
        jaxnorm.in_neuron_coordinates(inner).init(net.params)


def test_models_in_which_nothing_records():
    x = jnp.ones((2, 5))
    text = "init_statistics: got a model in which no layer records"
    for layer in (nn.Dense(3), jaxnorm.linen.Dense(3, gate=None, rule=jaxnorm.PLAIN)):
        with pytest.raises(ValueError, match=text):
            jaxnorm.linen.init_statistics(layer, layer.init(jax.random.key(0), x), x)
    plain = jaxnorm.nnx.Linear(5, 3, gate=None, rule=jaxnorm.PLAIN, rngs=nnx.Rngs(0))
    for layer in (nnx.Linear(5, 3, rngs=nnx.Rngs(0)), plain):
        with pytest.raises(ValueError, match=text):
            jaxnorm.nnx.init_statistics(layer, x)


def test_statistics_can_be_made_anew():
    """After another rule, which the old statistics would not fit."""
    x, _ = nets.data()
    model = nets.nnx_model()
    for layer in model.layers:
        layer.rule = Rule(scale="layer")
    with pytest.raises(ValueError, match="init_statistics"):
        model(x)
    jaxnorm.nnx.init_statistics(model, x)
    assert model.layers[0].neuron_stats.get_value().second is None
    assert model(x).shape == (24, 3)


def test_flags_among_the_arguments():
    """What is no array is not traced."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train, mask=None):
            x = jaxnorm.linen.Dense(3, gate=None)(x)
            return nn.Dropout(0.5, deterministic=not train)(x)

    x = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    variables = Model().init(jax.random.key(0), jnp.ones((4, 5)), False)
    kwargs = {"rngs": {"dropout": jax.random.key(0)}, "mutable": "batch_stats"}
    assert list(jaxnorm.linen.init_statistics(Model(), variables, x, True, None, **kwargs)) == [
        "Dense_0"
    ]
    model = nets.nnx_model()
    call = lambda model, x, flag: model(x) if flag else None  # noqa: E731
    jaxnorm.nnx.init_statistics(model, jnp.ones((4, 5)), True, call=call)


# --- Frozen parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["neuron", "layer", "none"])
@pytest.mark.parametrize("frozen", ["kernel", "bias", "both"])
@pytest.mark.parametrize("mode", ["masked", pytest.param("partition", marks=pytest.mark.slow)])
def test_frozen(frozen, mode, scale):
    """A frozen kernel leaves the bias its plain gradient, a frozen bias counts as none."""
    x, y = nets.data()
    net = make("linen", Rule(scale=scale))
    grads, batch = jax.jit(net.grads)(net.params, net.stats, x, y)
    stats = jaxnorm.update_statistics(net.stats, batch)
    names = ("kernel", "bias") if frozen == "both" else (frozen,)
    label = lambda path, _: path[0].key == "Dense_0" and path[1].key in names  # noqa: E731
    labels = jax.tree_util.tree_map_with_path(label, net.params)
    if mode == "masked":
        trained = optax.masked(SGD, jax.tree.map(lambda f: not f, labels))
        tx = optax.chain(trained, optax.masked(optax.set_to_zero(), labels))
    else:
        tx = optax.partition({False: SGD, True: optax.set_to_zero()}, labels)
    updates, whole = update(grads, net.params, stats, tx), update(grads, net.params, stats)
    assert error(updates["Dense_1"], whole["Dense_1"]) == 0
    for name in names:
        assert not updates["Dense_0"][name].any()
    if frozen == "kernel":
        assert error(updates["Dense_0"]["bias"], -grads["Dense_0"]["bias"]) <= 1e-14
    if frozen == "bias":
        expected = _without_bias(net, x, grads["Dense_0"], scale)
        assert error(updates["Dense_0"]["kernel"], expected) <= GATE["float64"]


def _without_bias(net, x, g, scale):
    """The step of the kernel by second moments about zero, in NumPy; SiLU."""
    x, params = np.asarray(x), net.params["Dense_0"]
    z = x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    sigmoid = 1 / (1 + np.exp(-z))
    s = np.abs(sigmoid * (1 + z * (1 - sigmoid)))
    layer = (x**2).mean(0)[:, None]
    trust = s.sum(0) ** 2 / (s.sum(0) ** 2 + 8 * (s**2).sum(0))
    second = trust * ((x**2).T @ s / s.sum(0)) + (1 - trust) * layer
    second = {"neuron": second, "layer": layer}.get(scale)
    if second is None:
        return -np.asarray(g["kernel"])
    square = second + 0.1 * second.mean(0)
    return -np.asarray(g["kernel"]) / (square / square.mean(0))


@pytest.mark.parametrize(
    "frozen", ["bias", "layer", pytest.param("kernel", marks=pytest.mark.slow)]
)
def test_frozen_in_nnx(frozen):
    """The framework's way: `wrt` leaves the parameter out."""
    x, y = nets.data()
    model, whole = nets.nnx_model(), nets.nnx_model()
    out = {"kernel": ("layers", 0, "kernel"), "bias": ("layers", 0, "bias")}
    chosen = {out[frozen]} if frozen in out else set(out.values())
    wrt = nnx.All(nnx.Param, lambda path, _: tuple(path) not in chosen)
    for each, by in ((model, wrt), (whole, nnx.Param)):
        optimizer = jaxnorm.nnx.Optimizer(each, SGD, wrt=by)
        what = nnx.DiffState(0, nnx.Any(by, jaxnorm.nnx.NeuronStats))
        grads = nnx.grad(lambda m: jnp.sum((m(x) - y) ** 2) / 2, argnums=what)(each)
        optimizer.update(each, grads)
    assert error(model.layers[1].kernel[...], whole.layers[1].kernel[...]) == 0
    old = nets.initial()[0]
    layer = model.layers[0]
    same = [bool((a[...] == b).all()) for a, b in zip((layer.kernel, layer.bias), old, strict=True)]
    assert same == [frozen in ("kernel", "layer"), frozen in ("bias", "layer")]
    assert float(layer.neuron_stats.get_value().steps) == 1


def test_nothing_that_the_rule_is_for_is_trained_in_nnx():
    """As where adapters are: told when the optimizer is made, not at its first step."""
    text = r"wrt: got a filter of 'layers/0/bias', .*'layers/1/bias', expected the kernel"
    with pytest.raises(ValueError, match=text):
        jaxnorm.nnx.Optimizer(nets.nnx_model(), SGD, wrt=nnx.PathContains("bias"))
    with pytest.raises(ValueError, match="wrt: got a filter of nothing, expected the kernel"):
        jaxnorm.nnx.Optimizer(nets.nnx_model(), SGD, wrt=nnx.LoRAParam)


# --- Other trees of parameters --------------------------------------------------------------------


def test_frozen_dicts_boxes_and_whole_variables(net, first):
    grads, batch, stats = first
    expected = update(grads, net.params, stats)
    freeze = nn.FrozenDict
    frozen = jaxnorm.update_statistics(freeze(net.stats), freeze(batch))
    assert isinstance(frozen, nn.FrozenDict)
    assert error(update(freeze(grads), freeze(net.params), frozen).unfreeze(), expected) == 0
    whole = [{"params": tree} for tree in (grads, net.params)]
    assert error(update(*whole, stats)["params"], expected) == 0
    boxed = [jax.tree.map(lambda a: nn.Partitioned(a, (None,) * a.ndim), t) for t in whole]
    result = update(*boxed, stats)["params"]
    assert isinstance(result["Dense_0"]["kernel"], nn.Partitioned)
    assert error(nn.meta.unbox(result), expected) == 0


def test_parameters_of_another_tree_than_the_gradients(net, first):
    grads, _, stats = first
    with pytest.raises(ValueError, match="params: got none at 'params/Dense_0/kernel'"):
        update({"params": grads}, net.params, stats)
