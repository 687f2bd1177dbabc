"""Whole Flax models: which gates are found, what changes and what does not, what goes wrong how."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.linen import module as flax_module
from flax.training.train_state import TrainState

import jaxnorm
from jaxnorm.linen import LEAVE, Deferred, Product, find_gates
from jaxnorm.statistics.tracked import Statistics
from parity_tests.models import flax_networks
from parity_tests.models import jax as models
from parity_tests.models.jax import PRECONDITIONED, compiled
from parity_tests.tolerances import GATE, VISIBLE, slice_error

#: Both conversions with a gradient that differs from the framework's in every step of any
#: optimizer.
neuronwise = functools.partial(jaxnorm.linen.neuronwise, rule=PRECONDITIONED)
convert = functools.partial(jaxnorm.nnx.convert, rule=PRECONDITIONED)

X = np.random.default_rng(0).normal(size=(12, 5)) * [1, 3, 0.1, 1, 1] + [0, 5, 1, 0, 0]

#: What follows each layer, read off the models by a person. A `Deferred` is (where, gate).
ATTENTION = dict.fromkeys(("query", "key", "value", "out"))
EXPECTED = {
    "ResNet": {
        "stem": ("BatchNorm_0", "relu"),
        "ResNetBlock_0/Conv_0": ("ResNetBlock_0/BatchNorm_0", "relu"),
        "ResNetBlock_0/Conv_1": ("ResNetBlock_0", "relu"),
        "ResNetBlock_1/Conv_0": ("ResNetBlock_1/BatchNorm_0", "relu"),
        "ResNetBlock_1/Conv_1": ("ResNetBlock_1", "relu"),
        "ResNetBlock_1/projection": ("ResNetBlock_1", "relu"),
        "Dense_0": None,
    },
    "ViT": {
        "patches": None,
        **{f"block/MultiHeadDotProductAttention_0/{k}": v for k, v in ATTENTION.items()},
        "block/Dense_0": "gelu",
        "block/Dense_1": None,
        "head": None,
    },
    "Mixer": {
        "Conv_0": None,
        "tokens_in": "gelu_erf",
        "tokens_out": None,
        "channels_in": "gelu_erf",
        "channels_out": None,
        "Dense_0": None,
    },
    "GPT": {
        **{f"MultiHeadDotProductAttention_0/{k}": v for k, v in ATTENTION.items()},
        "gate": Product("silu", "up", None),
        "up": Product(None, "gate", "silu"),
        "down": None,
    },
    "Policy": {"encoder": "tanh", "head": None},
}
NNX_EXPECTED = {
    "ResNet": {
        "stem": ("norm", "relu"),
        **{
            f"blocks/{i}/{layer}": (f"blocks/{i}{at}", "relu")
            for i in (0, 1)
            for layer, at in (("conv1", "/norm1"), ("conv2", ""), ("skip", ""))
        },
        "head": None,
    },
    "ViT": {
        "patches": None,
        **{f"blocks/0/attention/{k}": v for k, v in ATTENTION.items()},
        "blocks/0/gate": Product("silu", "blocks/0/up", None),
        "blocks/0/up": Product(None, "blocks/0/gate", "silu"),
        "blocks/0/down": None,
        "hidden": "tanh",
        "head": None,
    },
}


def in_short(report):
    """Layer -> gate, of the converted ones."""
    gates = {row.layer: row.gate for row in report.converted}
    return {k: (g.at, g.gate) if isinstance(g, Deferred) else g for k, g in gates.items()}


def check(result, expected):
    """What every model has to pass."""
    assert in_short(result.report) == expected
    assert result.unequal == []
    assert result.error <= GATE["float64"], result.errors


@pytest.mark.parametrize("name", EXPECTED)
def test_linen_models(name):
    check(models.linen(name), EXPECTED[name])


@pytest.mark.parametrize("name", NNX_EXPECTED)
def test_nnx_models(name):
    check(models.of_nnx(name), NNX_EXPECTED[name])


def statistics_by_layer(tree, path=()):
    """Layer -> its statistics."""
    if isinstance(tree, Statistics):
        return {"/".join(map(str, path[:-1])): tree}
    return {
        k: v for name in tree for k, v in statistics_by_layer(tree[name], (*path, name)).items()
    }


@pytest.mark.parametrize("name", ["ResNet", pytest.param("GPT", marks=pytest.mark.slow)])
def test_by_default_a_linen_model_trains_as_the_frameworks(name):
    """Bit for bit, with and without statistics, which every converted layer has."""
    make, inputs, kwargs = flax_networks.LINEN[name]
    model, x = make(), jnp.asarray(inputs())
    variables = init(model, x)
    params, state = variables.pop("params"), variables
    apply = jaxnorm.linen.neuronwise(model)
    report = find_gates(model, {"params": params, **state}, x, **kwargs)
    stats = jaxnorm.linen.init_statistics(apply, {"params": params, **state}, x, **kwargs)

    def run(apply, params, **more):
        def loss(params, more):
            out = apply({"params": params, **state, **more}, x, **kwargs)
            out, new = out if "mutable" in kwargs else (out, {})
            return jnp.sum(out * np.random.default_rng(5).normal(size=out.shape)), new

        return compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, more)

    expected = run(model.apply, params)
    jax.tree.map(np.testing.assert_array_equal, run(apply, params), expected)
    outputs, (grads, more) = run(apply, params, neuron_stats=stats)
    recorded = statistics_by_layer(more["neuron_stats"])
    jax.tree.map(np.testing.assert_array_equal, (outputs, (grads, {})), expected)
    assert recorded.keys() == {row.layer for row in report.converted}
    assert all(each.calls == 1 and each.samples > 1 for each in recorded.values())


@pytest.mark.parametrize("name", [pytest.param("ResNet", marks=pytest.mark.slow), "ViT"])
def test_by_default_an_nnx_model_trains_as_the_frameworks(name):
    model = models.build(lambda: flax_networks.NNX[name](nnx.Rngs(0, dropout=1)))
    x = jnp.asarray(flax_networks.images())

    def run(model):
        graph, learned, rest = nnx.split(model, jaxnorm.nnx.PARAMS_AND_STATISTICS, ...)

        def loss(learned):
            copy = nnx.merge(graph, learned, rest, copy=True)
            out = copy(x)
            new = nnx.to_pure_dict(nnx.state(copy, nnx.BatchStat))
            return jnp.sum(out * np.random.default_rng(5).normal(size=out.shape)), new

        outputs, grads = compiled(jax.value_and_grad(loss, has_aux=True))(learned)
        params, stats = nnx.split_state(grads, nnx.Param, jaxnorm.nnx.NeuronStats)
        return (outputs, nnx.to_pure_dict(params)), nnx.to_pure_dict(stats)

    expected, _ = run(model)
    report = jaxnorm.nnx.convert(model, example_input=x)
    found, nothing = run(model)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not jax.tree.leaves(nothing)
    jaxnorm.nnx.init_statistics(model, x)
    found, stats = run(model)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    recorded = statistics_by_layer(stats)
    assert recorded.keys() == {row.layer for row in report.converted}
    assert all(each.calls == 1 and each.samples > 1 for each in recorded.values())


def test_a_wrong_gate_is_visible():
    with pytest.warns(UserWarning, match="gate of 'up': got no word"):
        result = models.linen("GPT", wrong={"gate": "silu"})  # and not times up
    errors = {layer: error for layer, error in result.errors.items() if error > GATE["float64"]}
    assert errors.keys() == {"gate", "up"}  # up waits in vain for its other half
    assert min(errors.values()) > VISIBLE


def test_other_rules():
    rule = jaxnorm.Rule(weighting="error", scale="layer", gradient="standardized", shrinkage=2.0)
    result = models.linen("GPT", rule)
    assert result.unequal == []
    assert result.error <= GATE["float64"]


# --- the same as layers of ours -----------------------------------------------------------------


def reference(features, gate, **kwargs):
    """A layer of the framework, for which the gate is somebody else's business."""
    del gate
    return nn.Dense(features, param_dtype=float, **kwargs)


def ours(features, gate, **kwargs):
    """The layer that the conversion should make of it."""
    kwargs |= {"gate": gate, "rule": PRECONDITIONED, "param_dtype": float}
    return jaxnorm.linen.Dense(features, **kwargs)


class Block(nn.Module):
    """One layer and its activation."""

    dense: object = reference

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        return nn.softplus(self.dense(5, "softplus")(x))


class Lifted(nn.Module):
    """Blocks behind lifted transforms."""

    dense: object = reference
    lift: object = staticmethod(lambda block: block)

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        x = self.lift(Block)(self.dense, name="block")(x)
        return self.dense(2, None, name="head")(x)


class Round(nn.Module):
    """A block as the body of a scan."""

    dense: object = reference

    @nn.compact
    def __call__(self, x, _):
        """Apply it."""
        return Block(self.dense)(x), None


class Scanned(nn.Module):
    """Three rounds, each with weights of its own, or all with the same."""

    dense: object = reference
    tied: bool = False

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        kwargs = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        if self.tied:
            kwargs = {"variable_broadcast": "params", "split_rngs": {"params": False}}
        return nn.scan(Round, length=3, **kwargs)(self.dense)(x, None)[0]


class Ensemble(nn.Module):
    """Three members on the same batch."""

    dense: object = reference

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        kwargs = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.vmap(Block, in_axes=None, axis_size=3, **kwargs)(self.dense)(x)


class Setup(nn.Module):
    """Layers made in setup, in a list, one called by another method."""

    dense: object = reference

    def setup(self):
        """Make the layers."""
        self.layers = [self.dense(5, "tanh"), self.dense(4, "silu")]
        self.head = self.dense(3, None)

    def __call__(self, x):
        """Apply it."""
        return self.head(self.encode(x))

    def encode(self, x):
        """All but the head."""
        return nn.silu(self.layers[1](nn.tanh(self.layers[0](x))))


class Partitioned(nn.Module):
    """Parameters in boxes."""

    dense: object = reference

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.gelu(self.dense(4, "gelu", kernel_init=init)(x))


def init(model, *args):
    """Variables in float64, without compiling the initialization."""
    shapes = jax.eval_shape(lambda key: model.init(key, *args), jax.random.key(0))
    return models.initial(shapes)


def gradient(apply, variables, x=X, **kwargs):
    """The gradients with a fixed cotangent, compiled."""

    def loss(variables):
        z = apply(variables, x, **kwargs)
        return jnp.sum(z * np.random.default_rng(5).normal(size=z.shape))

    return compiled(jax.grad(loss))(variables)


def close(a, b):
    """Equal trees up to the gate."""
    jax.tree.map(lambda x, y: np.testing.assert_array_less(_error(x, y), GATE["float64"]), a, b)


def _error(a, b):
    return 0.0 if np.array_equal(a, b) else slice_error(a, b, axes=())


CASES = {
    "plain": Lifted,
    "remat": lambda dense: Lifted(dense, nn.remat),
    "jit": lambda dense: Lifted(dense, nn.jit),
    "jit of remat": lambda dense: Lifted(dense, lambda block: nn.jit(nn.remat(block))),
    "scan": Scanned,
    "ensemble": Ensemble,
    "setup": Setup,
    "partitioned": Partitioned,
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_is_the_model_written_with_our_layers(make):
    model = make(reference)
    variables = init(model, X)
    plain = gradient(model.apply, variables)  # first: nothing may come from a cache of this
    expected = gradient(make(ours).apply, variables)
    apply = neuronwise(model)
    result = gradient(apply, variables)
    close(result, expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, gradient(model.apply, variables), plain))
    outputs = (compiled(run)(variables, X) for run in (apply, model.apply))
    jax.tree.map(np.testing.assert_array_equal, *outputs)
    worst = max(map(_error, jax.tree.leaves(result), jax.tree.leaves(plain)))
    assert worst > VISIBLE


def test_methods_binding_and_freezing():
    model = Setup()
    variables = init(model, X)
    expected = gradient(Setup(ours).apply, variables)
    apply = neuronwise(model)
    close(gradient(apply, FrozenDict(variables)), FrozenDict(expected))
    close(gradient(neuronwise(lambda v, x: model.bind(v)(x)), variables), expected)
    for method in ("encode", Setup.encode):
        close(
            gradient(apply, variables, method=method),
            gradient(Setup(ours).apply, variables, method=method),
        )
    jaxnorm.linen.find_gates(model, variables, X, method="encode")


def test_transformations_around_the_model():
    model = Lifted()
    variables = init(model, X)
    apply, explicit = neuronwise(model), Lifted(ours).apply
    batches = np.stack([X, X[::-1] * 2])
    each, other = (
        compiled(jax.vmap(lambda x: jax.grad(lambda v: jnp.sum(f(v, x) ** 2))(variables)))(batches)  # noqa: B023
        for f in (apply, explicit)
    )
    close(each, other)
    shared = neuronwise(model, {"*block*": "softplus", "head": None}, axis_name="batch")

    def whole(x):
        g = jax.grad(lambda v: jnp.sum(shared(v, x) ** 2))(variables)
        return jax.lax.psum(g, "batch")

    parts = compiled(jax.vmap(whole, axis_name="batch"))(X.reshape(3, 4, 5))
    expected = compiled(jax.grad(lambda v: jnp.sum(explicit(v, X) ** 2)))(variables)
    # Not linear in the batch: only where the statistics are those of the whole batch.
    close(jax.tree.map(lambda a: a[0], parts), expected)


def test_train_state():
    model = Lifted()
    params = init(model, X)["params"]
    state = TrainState.create(apply_fn=neuronwise(model), params=params, tx=optax.sgd(1e-2))

    @compiled
    def step(state):
        def loss(params):
            return jnp.mean(state.apply_fn({"params": params}, X) ** 2)

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    losses: list[float] = []
    for _ in range(5):
        state, value = step(state)
        losses.append(float(value))
    assert losses[-1] < losses[0]


# --- which layers, which gates -------------------------------------------------------------------


def gate_after(activation, features=6, x=X):
    """What is found behind one layer."""
    model = nn.Sequential([nn.Dense(features), activation])
    variables = jax.eval_shape(lambda key: model.init(key, x), jax.random.key(0))
    return find_gates(model, variables, x).rows[0]


NAMED = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "gelu_erf": lambda z: nn.gelu(z, approximate=False),
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": nn.sigmoid,
    "elu": nn.elu,
    "selu": nn.selu,
    "leaky_relu": nn.leaky_relu,
    "relu6": jax.nn.relu6,
    "softplus": nn.softplus,
    "hard_tanh": nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "mish": jax.nn.mish,
    "log_sigmoid": nn.log_sigmoid,
    "soft_sign": nn.soft_sign,
    "squareplus": jax.nn.squareplus,
    "glu": nn.glu,
}
SAME_SLOPES = {
    "relu": lambda z: jnp.where(z > 0, 3 * z, 0.0) + 1,
    "tanh": lambda z: 2 * nn.sigmoid(2 * z) - 1,
    "silu": lambda z: z / (1 + jnp.exp(-z)),
    "sigmoid": lambda z: nn.sigmoid(z.reshape(3, 4, 6).astype("float32")),
    None: lambda z: z.T / 3 + 1,
}


@pytest.mark.parametrize("name", NAMED)
def test_activations_by_name(name):
    assert gate_after(NAMED[name]).gate == name


@pytest.mark.parametrize("name", SAME_SLOPES, ids=str)
def test_activations_by_what_they_compute(name):
    assert gate_after(SAME_SLOPES[name]).gate == name


@pytest.mark.parametrize(
    ("activation", "shown"),
    [
        (lambda z: nn.leaky_relu(z, 0.3), "leaky_relu"),
        (lambda z: nn.elu(z, 0.5), "elu"),
        (lambda z: nn.relu(z) ** 2, "elementwise"),
        (lambda z: nn.relu(z - 1), "elementwise"),
        (lambda z: jnp.where(z > 0.5, z, 0.1 * jnp.sin(z)), "elementwise"),
    ],
)
def test_activations_without_a_name_are_cut_out(activation, shown):
    gate = gate_after(activation).gate
    assert gate.__name__ == shown
    z = np.random.default_rng(1).normal(size=(3, 2, 7))
    for dtype in ("float32", "float64"):  # any shape, any dtype
        own = jnp.asarray(z, dtype)
        assert (
            slice_error(np.asarray(gate(own)), np.asarray(activation(own)), axes=()) <= GATE[dtype]
        )
        expected = jax.vmap(jax.grad(activation))(own.ravel()).reshape(z.shape)
        slope = jax.vjp(gate, own)[1](jnp.ones_like(own))[0]
        assert slice_error(np.asarray(slope), np.asarray(expected), axes=()) <= GATE[dtype]
        assert slope.dtype == gate(own).dtype == dtype


@pytest.mark.parametrize("kind", ["Dense", "Conv", "DenseGeneral"])
def test_cut_out_gates_in_layers(kind):
    def activation(z):
        return nn.leaky_relu(z, 0.3)

    arguments = {"Dense": (4,), "Conv": (4, (3,)), "DenseGeneral": ((2, 2),)}[kind]
    model = nn.Sequential([getattr(nn, kind)(*arguments), activation])
    layer = getattr(jaxnorm.linen, kind)(*arguments, gate=activation)
    x = X.reshape(3, 4, 5)
    variables = init(model, x)
    report = find_gates(model, variables, x[:2])  # for another batch size
    rule = jaxnorm.Rule(gradient="preconditioned", statistics_rows=2)
    explicit = nn.Sequential([layer.clone(rule=rule), activation]).apply
    close(
        gradient(neuronwise(model, report, rule=rule), variables, x),
        gradient(explicit, variables, x),
    )


@jax.custom_jvp
def _straight_through(z):
    return jnp.round(jnp.tanh(z))


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    (z,), (t,) = primals, tangents
    return _straight_through(z), t * (1 - jnp.tanh(z) ** 2)


def test_derivatives_of_their_own_are_kept():
    assert gate_after(_straight_through).gate == "tanh"


@pytest.mark.parametrize(
    ("activation", "reason", "unresolved"),
    [
        (nn.softmax, "no activation follows: a maximum, a difference", False),
        (lambda z: z + 2 * nn.relu(z), None, False),
        (lambda z: jnp.concatenate([z, nn.relu(z)]), "read by others and relu", True),
        (lambda z: nn.relu(z + X[:, :1]) + X[:, 1:2], None, True),
        (lambda z: jnp.zeros(3), "its output is not used", False),
        (lambda z: z.sum(), "no activation follows: a reduction", False),
        (lambda z: nn.silu(z) * (X @ jnp.ones((5, 6))), None, True),
    ],
)
def test_what_is_no_gate(activation, reason, unresolved):
    row = gate_after(activation)
    assert reason is None or row.reason == reason
    assert row.unresolved == unresolved


def test_dropout_is_looked_through():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dropout(0.3, deterministic=not train)(nn.Dense(8)(x))
            return nn.Dense(2)(nn.Dropout(0.3, deterministic=not train)(nn.relu(x)))

    model = Model()
    variables = init(model, X, False)
    for kwargs in ({"train": True, "rngs": {"dropout": jax.random.key(1)}}, {"train": False}):
        assert find_gates(model, variables, X, **kwargs)["Dense_0"].gate == "relu"


def swiglu(z):
    """Both halves in one layer."""
    a, b = jnp.split(z, 2, axis=-1)
    return nn.silu(a) * b


def test_gated_units_of_one_layer():
    row = gate_after(swiglu)
    assert isinstance(row.gate, jaxnorm.JointGate)
    model = nn.Sequential([nn.Dense(6), swiglu])
    variables = init(model, X)
    layer = jaxnorm.linen.Dense(6, gate=jaxnorm.JointGate(swiglu), rule=PRECONDITIONED)
    explicit = nn.Sequential([layer, swiglu])
    close(gradient(neuronwise(model), variables), gradient(explicit.apply, variables))
    # Found on one batch size, used on another.
    apply = neuronwise(model, find_gates(model, variables, X[:3]))
    close(gradient(apply, variables), gradient(explicit.apply, variables))


def test_layers_that_are_left_alone_and_why():
    class Sub(nn.Dense):
        def __call__(self, inputs):
            return super().__call__(inputs)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            twice = nn.Dense(5, name="twice")
            x = nn.relu(twice(nn.relu(twice(x))))
            x = nn.relu(nn.WeightNorm(nn.Dense(4, name="normed"))(x))
            x = jaxnorm.linen.Dense(4, gate=None, name="own")(x)
            x = Sub(4, name="sub")(x) + nn.Embed(3, 4, name="embed")(jnp.zeros(12, int))
            x = nn.vmap(  # the same kernel for every example
                nn.Dense, variable_axes={"params": None}, split_rngs={"params": False}
            )(4, name="mapped")(x)
            return nn.Dense(2, name="head")(x)

    model = Model()
    variables = init(model, X)
    assert find_gates(model, variables, X)["twice"].reason == "direct, in each of 2 calls"
    report = find_gates(model, variables, X).once()
    # Recorded statistics are those of all examples; one alone has none.
    assert [row.layer for row in report.converted] == ["mapped", "head"]
    reasons = {row.layer: row.reason for row in report.left}
    assert reasons["twice"].startswith("called several times")
    assert "function of other parameters" in reasons["normed"]
    assert reasons["sub"] == "a subclass with methods of its own in place of its base's"
    assert reasons["own"] == "a layer of jaxnorm already"
    assert "embed" in reasons
    text = str(report)
    assert "left alone: called several times" in text
    assert text.endswith("2 of 7 layers with a matrix are converted")
    plain = gradient(model.apply, variables)["params"]
    auto = gradient(neuronwise(model), variables)["params"]
    named = gradient(neuronwise(model, {"twice": "relu"}), variables)["params"]
    for layer in ("twice", "normed", "sub", "mapped"):
        np.testing.assert_array_equal(auto[layer]["kernel"], plain[layer]["kernel"])
    assert _error(auto["head"]["kernel"], plain["head"]["kernel"]) > VISIBLE
    assert _error(named["twice"]["kernel"], plain["twice"]["kernel"]) > VISIBLE
    np.testing.assert_array_equal(named["head"]["kernel"], plain["head"]["kernel"])


def test_the_same_weights_in_every_round_are_left_alone():
    model = Scanned(tied=True)
    variables = init(model, X)
    report = find_gates(model, variables, X)
    assert (report.rows[0].gate, report.rows[0].repeated) == ("softplus", True)
    assert not report.once().converted
    jax.tree.map(
        np.testing.assert_array_equal,
        gradient(neuronwise(model), variables),
        gradient(model.apply, variables),
    )
    close(
        gradient(neuronwise(model, {"*": "softplus"}), variables),
        gradient(Scanned(ours, tied=True).apply, variables),
    )


def test_ways_to_say_the_gates():
    model = Setup()
    variables = init(model, X)
    expected = gradient(neuronwise(model), variables)
    report = find_gates(model, variables, X)
    assert report.gates == {"layers_0": "tanh", "layers_1": "silu", "head": None}

    def by_path(path, module):
        assert isinstance(module, nn.Dense)
        return report.gates[path]

    for gates in (
        report,
        report.gates,
        by_path,
        {"layers_0": "tanh", "layers_?": "silu", "*": None},  # the first that matches
    ):
        close(gradient(neuronwise(model, gates), variables), expected)
    plain = gradient(model.apply, variables)["params"]
    partly = gradient(neuronwise(model, {"head": LEAVE, "*": "relu"}), variables)["params"]
    np.testing.assert_array_equal(partly["head"]["kernel"], plain["head"]["kernel"])
    assert _error(partly["layers_0"]["kernel"], plain["layers_0"]["kernel"]) > VISIBLE


def test_deferred_and_product_by_hand():
    class Unit(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.silu(nn.Dense(4, name="gate")(x)) * nn.Dense(4, name="up")(x)

    model = Unit()
    variables = init(model, X)
    found = gradient(neuronwise(model), variables)
    gates = {"gate": Product("silu", "up", None), "up": Product(None, "gate", "silu")}
    by_hand = gradient(neuronwise(model, gates), variables)
    jax.tree.map(np.testing.assert_array_equal, by_hand, found)
    # Alone, one half is never told: uniform weights, and a warning.
    with pytest.warns(UserWarning, match="gate of 'up': got no word"):
        alone = gradient(neuronwise(model, {"up": gates["up"]}), variables)
    uniform = gradient(neuronwise(model, {"up": None}), variables)
    close(alone, uniform)


def test_relative_and_absolute_paths_of_normalizations():
    model = flax_networks.ResNetBlock(3)
    x = flax_networks.images()
    variables = init(model, x, True)
    run = {"train": True, "mutable": ["batch_stats"]}

    def grads(gates):
        def loss(params):
            out, _ = neuronwise(model, gates)({**variables, "params": params}, x, **run)
            return jnp.sum(out**2)

        return compiled(jax.grad(loss))(variables["params"])["Conv_0"]["kernel"]

    right = grads({"Conv_0": Deferred("BatchNorm_0", "relu")})
    with pytest.warns(UserWarning, match="gate of 'Conv_0': got no word"):
        wrong = grads({"Conv_0": Deferred("BatchNorm_1", "relu")})
    uniform = grads({"Conv_0": None})
    assert _error(right, uniform) > VISIBLE
    assert _error(wrong, uniform) <= GATE["float64"]


# --- nnx -----------------------------------------------------------------------------------------


class Mlp(nnx.Module):
    """A shared layer, a list, and a stack for scan."""

    def __init__(self, rngs):
        kwargs = {"rngs": rngs, "param_dtype": float}
        self.twice = nnx.Linear(5, 5, **kwargs)
        self.alias = self.twice
        self.layers = nnx.List([nnx.Linear(5, 5, **kwargs) for _ in range(2)])
        self.unused = nnx.Linear(5, 5, **kwargs)
        self.embed = nnx.Embed(3, 5, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Linear(5, 5, param_dtype=float, rngs=rngs)

        self.stack = make(rngs)

    def __call__(self, x):
        """Apply it."""
        x = nnx.tanh(self.twice(nnx.tanh(self.twice(x))))
        for layer in self.layers:
            x = nnx.gelu(layer(x))

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return nnx.relu(layer(x))

        return run(x, self.stack)


@nnx.jit
def _nnx_gradient(model):
    cotangent = np.random.default_rng(5).normal(size=(12, 5))
    return nnx.grad(lambda model: jnp.sum(model(X) * cotangent))(model)


def nnx_gradient(model):
    """The gradients with a fixed cotangent, compiled."""
    return nnx.to_pure_dict(_nnx_gradient(model))


def test_nnx_converts_in_place_and_back():
    model = models.build(lambda: Mlp(nnx.Rngs(0)))
    kernels, before = [each.kernel for each in model.layers], nnx.graphdef(model)
    plain, output = nnx_gradient(model), nnx.jit(lambda model: model(X))(model)
    report = convert(model, example_input=X, skip=["layers/1"])
    assert in_short(report) == {"layers/0": "gelu", "stack": "relu"}
    reasons = {row.layer: row.reason for row in report.left}
    assert reasons["alias"].startswith("called 2 times")
    assert "the same object at twice" in reasons["alias"]
    assert reasons["layers/1"] == "skipped"
    assert reasons["unused"] == "not called on example_input"
    assert report["stack"].reason == "direct; stacked weights"
    assert "embed" in reasons
    assert all(each.kernel is kernel for each, kernel in zip(model.layers, kernels, strict=True))
    assert isinstance(model.layers[0], nnx.Linear)
    np.testing.assert_array_equal(nnx.jit(lambda model: model(X))(model), output)
    adapted = nnx_gradient(model)
    for name in ("alias", "embed", "unused"):
        jax.tree.map(np.testing.assert_array_equal, adapted[name], plain[name])
    np.testing.assert_array_equal(adapted["layers"][1]["kernel"], plain["layers"][1]["kernel"])
    for name in ("stack",):
        assert _error(adapted[name]["kernel"], plain[name]["kernel"]) > VISIBLE
    close(nnx_gradient(nnx.merge(*nnx.split(model))), adapted)
    jaxnorm.nnx.revert(model)
    assert nnx.graphdef(model) == before
    jax.tree.map(np.testing.assert_array_equal, nnx_gradient(model), plain)
    jaxnorm.nnx.revert(model)  # twice does no harm
    own = jaxnorm.nnx.Linear(2, 2, gate="relu", rngs=nnx.Rngs(0))
    jaxnorm.nnx.revert(own)
    assert type(own) is jaxnorm.nnx.Linear


def test_nnx_trains_with_the_optimizer_from_before():
    model = models.build(lambda: flax_networks.NnxBlock(3, 4, 2, nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)
    x = jnp.asarray(flax_networks.images())
    convert(model, example_input=x)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - 1.0) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert type(model.norm1) is not nnx.BatchNorm
    jaxnorm.nnx.revert(model)
    assert type(model.norm1) is nnx.BatchNorm
    assert type(model) is flax_networks.NnxBlock


def test_nnx_gates_by_hand():
    def build():
        return models.build(lambda: flax_networks.NnxEncoderBlock(nnx.Rngs(0)))

    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 8)))

    def grads(model):
        model.eval()

        def loss(model):
            return jnp.sum(model(tokens) ** 2)

        return nnx.to_pure_dict(nnx.jit(nnx.grad(loss))(model))

    auto, named = build(), build()
    found = convert(auto, example_input=tokens)
    again = convert(named, found.gates, example_input=tokens)
    assert in_short(found) == in_short(again)
    jax.tree.map(np.testing.assert_array_equal, grads(auto), grads(named))
    parts = [build().gate, {"a": build().up}]  # no module around them
    report = convert(parts, lambda path, layer: "relu")
    assert in_short(report) == {"0": "relu", "1/a": "relu"}


def test_nnx_errors():
    model = models.build(lambda: Mlp(nnx.Rngs(0)))
    before = nnx.graphdef(model)
    with pytest.raises(ValueError, match="example_input: got None"):
        convert(model)
    with pytest.raises(ValueError, match="matches no layer"):
        convert(model, {"nothing*": "relu"})
    with pytest.raises(ValueError, match="matches no layer"):
        convert(model, {"*": "relu"}, skip=["nothing"])
    with pytest.raises(ValueError, match="without a layer to convert"):
        convert(nnx.Embed(3, 4, rngs=nnx.Rngs(0)), {"*": "relu"})
    with pytest.raises(ValueError, match="expected the path of a BatchNorm"):
        convert(model, {"unused": Deferred("nowhere", "relu")})
    with pytest.raises(ValueError, match="expected the path of another layer"):
        convert(model, {"unused": Product(None, "nowhere", "relu")})
    with pytest.raises(TypeError, match="dot_general"):  # the framework's own
        convert(model, example_input=np.ones((3, 4)))
    with pytest.raises(TypeError, match="rule: got"):
        convert(model, {"*": "relu"}, rule="bnp")
    assert nnx.graphdef(model) == before


# --- what goes wrong ------------------------------------------------------------------------------


def test_bad_gates():
    model = Lifted()
    variables = init(model, X)
    with pytest.raises(ValueError, match=r"gates\['a'\]: gate: got 'rleu'"):
        neuronwise(model, {"a": "rleu"})
    with pytest.raises(TypeError, match=r"gates\['a'\]: gate: got DEFERRED, expected Deferred"):
        neuronwise(model, {"a": jaxnorm.DEFERRED})
    with pytest.raises(TypeError, match="gates: got 3, expected 'auto'"):
        neuronwise(model, 3)
    with pytest.raises(TypeError, match="model: got 3"):
        neuronwise(3)
    with pytest.raises(TypeError, match="rule: got"):
        neuronwise(model, rule=None)
    with pytest.raises(ValueError, match="whose derivative can be told from its value"):
        Deferred("block", "gelu", applied=True)
    with pytest.raises(ValueError, match=r"'blok/\*', which matches no layer, .* 'block/Dense_0'"):
        neuronwise(model, {"blok/*": "relu"})(variables, X)
    with pytest.raises(ValueError, match="mixes entries"):
        gradient(neuronwise(model, {"head": nn.softmax}), variables)


def test_a_model_without_layers():
    model = nn.Embed(3, 4)
    tokens = np.zeros(5, int)
    variables = init(model, tokens)
    for run in (neuronwise(model), neuronwise(model, {"*": "relu"})):
        with pytest.raises(ValueError, match="without a layer to convert, expected at least one"):
            run(variables, tokens)
    with pytest.raises(ValueError, match="find_gates: got a model without a layer"):
        find_gates(model, variables, tokens)


@pytest.mark.parametrize("gates", ["auto", {"*": "relu"}], ids=str)
def test_bad_variables_raise_the_frameworks_errors(gates):
    model = Lifted()
    variables = init(model, X)
    missing = jax.tree.map(lambda a: a, variables)
    del missing["params"]["head"]["bias"]
    cases = [(variables, X[:, :4]), (missing, X), ({}, X), ({"params": {}}, X)]
    for bad, x in cases:
        with pytest.raises(Exception) as theirs:  # noqa: PT011 whatever the framework raises
            model.apply(bad, x)
        with pytest.raises(type(theirs.value)) as own:
            neuronwise(model, gates)(bad, x)
        assert str(own.value) == str(theirs.value)
    extra = {**variables, "params": {**variables["params"], "more": np.ones(2)}}
    np.testing.assert_array_equal(neuronwise(model, gates)(extra, X), model.apply(variables, X))
    inside = jax.tree.map(lambda a: a, extra)
    inside["params"]["head"]["more"] = np.ones((2, 2))
    np.testing.assert_array_equal(neuronwise(model, gates)(inside, X), model.apply(variables, X))


def test_nothing_stays_behind_an_exception():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Dense(3)(x)
            raise RuntimeError("broken")

    class Sound(Broken):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x)

    def interceptors():
        return len(flax_module._global_interceptor_stack._storage)

    for gates in ("auto", {"*": "relu"}):
        with pytest.raises(RuntimeError, match="broken"):
            neuronwise(Broken(), gates)(init(Sound(), X), X)
        assert interceptors() == 0
    with pytest.raises(Exception, match="Dense_0"):
        find_gates(Lifted(), {}, X)
    assert interceptors() == 0


def test_threads():
    model = Lifted()
    variables = init(model, X)
    barrier = threading.Barrier(4)
    apply = neuronwise(model)

    def work(i):
        barrier.wait()
        return gradient(apply if i % 2 else model.apply, variables)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    close(results[0], results[2])
    close(results[1], results[3])
    assert _error(*(r["params"]["head"]["kernel"] for r in results[:2])) > VISIBLE


def test_one_sample_is_an_error_of_the_gradient_only():
    model = Lifted()
    variables = init(model, X)
    apply = neuronwise(model)
    assert apply(variables, X[:1]).shape == (1, 2)
    with pytest.raises(ValueError, match="statistics: got 1 sample"):
        gradient(apply, variables, X[:1])
