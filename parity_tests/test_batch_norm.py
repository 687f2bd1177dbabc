"""BatchNorm: gradients in NumPy, conventions, whole batches over devices, gates, bad input.

Forward, gradients and states of the layers themselves are rows of the matrix.
"""

import importlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm
import torchnorm
from parity_tests.oracle import batch_norm as oracle
from parity_tests.tolerances import DERIVATIVE, VISIBLE

LINEN, NNX, TORCH = (p.normalizers for p in (jaxnorm.linen, jaxnorm.nnx, torchnorm))
RNG = np.random.default_rng(0)
EXACT = 1e-12


def close(actual, expected, gate=EXACT):
    actual, expected = np.asarray(actual), np.asarray(expected)
    unit = max(np.abs(expected).max(), 1e-300)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= gate * unit


# In NumPy, by itself.


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 3), -1), ((4, 3, 2), 1), ((2, 3, 2, 2, 3), -1)])
def test_numpy_gradients_are_those_of_its_forward_pass(shape, axis, train):
    x, delta = RNG.normal(size=(2, *shape)) * 2 + 1
    state = {"mean": RNG.normal(size=3), "var": RNG.uniform(0.5, 2, 3)}
    params = {"scale": RNG.uniform(0.5, 2, 3), "bias": RNG.normal(size=3)}
    layer = oracle.BatchNorm(3, axis=axis, params=params, state=state)
    layer.forward(x, train=train)
    found = layer.backward(delta)

    def loss(**given):
        entries = {"x": x, **params, **given}
        values = {name: entries[name] for name in params}
        y, _ = oracle.forward(entries["x"], values, state, train=train, axis=axis)
        return (y * delta).sum()

    for name, array in {"x": x, **params}.items():
        right = oracle.central_differences(lambda v, name=name: loss(**{name: v}), array)
        close(getattr(found, name), right, DERIVATIVE.gate)


@pytest.mark.parametrize("convention", ["flax", "torch"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_numpy_is_both_frameworks(convention, train):
    """Flax's and PyTorch's layers themselves, over three batches."""
    params = {"scale": RNG.uniform(0.5, 2, 4), "bias": RNG.normal(size=4)}
    ours = oracle.BatchNorm(4, convention=convention, params=params)
    module = torch.nn.BatchNorm2d(4, dtype=torch.float64).train(train)
    module.load_state_dict({"weight": torch.tensor(params["scale"]),
                            "bias": torch.tensor(params["bias"])}, strict=False)  # fmt: skip
    layer = nn.BatchNorm(not train, use_fast_variance=False)
    variables = {"params": params, "batch_stats": ours.state}
    for _ in range(3):
        x, delta = RNG.normal(size=(2, 3, 5, 2, 4)) + 1
        y = ours.forward(x, train=train)
        gradients = ours.backward(delta)
        if convention == "flax":
            found, pull, new = jax.vjp(
                lambda p, x, v=variables: layer.apply(
                    {**v, "params": p}, x, mutable=["batch_stats"]
                ),
                params,
                jnp.asarray(x),
                has_aux=True,
            )
            in_params, g_x = pull(jnp.asarray(delta))
            variables = {**variables, **new}
            scale, bias = in_params["scale"], in_params["bias"]
            stats = variables["batch_stats"]["mean"], variables["batch_stats"]["var"]
        else:
            inputs = torch.tensor(x).movedim(-1, 1).requires_grad_()
            out = module(inputs)
            g_x, scale, bias = torch.autograd.grad(
                out, (inputs, module.weight, module.bias), torch.tensor(delta).movedim(-1, 1)
            )
            found, g_x = (t.detach().movedim(1, -1).numpy() for t in (out, g_x))
            stats = module.running_mean, module.running_var
        close(found, y)
        close(g_x, gradients.x)
        close(scale, gradients.scale)
        close(bias, gradients.bias)
        close(stats[0], ours.state["mean"])
        close(stats[1], ours.state["var"])


def test_other_divisors_are_wrong_and_what_hides_it():
    """The published gradient: wrong, but not for what its own test asks."""
    for _, error, other in oracle.compared():
        assert error < DERIVATIVE.gate * 100
        assert other > 0.3
    x = RNG.normal(size=(4, 50, 50, 1))
    ones, scale = np.ones_like(x), np.ones(x.shape[1:])
    frozen = 1 / np.sqrt(x.var(0) + 1e-8)  # of a layer that evaluates
    other = oracle.with_other_divisors(x, ones, scale)
    assert np.abs(other - frozen).max() < VISIBLE * frozen.max()
    layer = oracle.BatchNorm(2500, epsilon=1e-8)
    layer.forward(x.reshape(4, -1))
    assert np.abs(layer.backward(ones.reshape(4, -1)).x).max() < EXACT * frozen.max()  # of training


# Conventions.


def of_linen(x, **knobs):
    layer = LINEN.BatchNorm(use_running_average=False, param_dtype=x.dtype, **knobs)
    variables = layer.init(jax.random.key(0), x)
    return layer.apply(variables, x, mutable=["batch_stats"])


def test_float32_far_from_zero():
    """At a mean of 1e4 Flax's default has no digit left; ours and PyTorch's have all that x has."""
    x = (RNG.normal(size=(64, 3)) + 1e4).astype(np.float32)
    right = (x - x.mean(0, dtype=np.float64)) / np.sqrt(x.var(0, dtype=np.float64) + 1e-5)
    theirs = nn.BatchNorm(use_running_average=False)
    y, _ = theirs.apply(theirs.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    assert np.abs(y - right).max() > 1
    close(of_linen(x)[0], right, 1e-3)
    close(NNX.BatchNorm(3, rngs=nnx.Rngs(0))(x), right, 1e-3)
    close(TORCH.BatchNorm(3)(torch.tensor(x)).detach(), right, 1e-3)


def test_one_convention_is_one_layer_in_both_packages():
    """With nothing else given, and each package's default is its own framework's."""
    x = RNG.normal(size=(6, 4))
    for convention in ("flax", "torch"):
        _, new = of_linen(jnp.asarray(x), convention=convention)
        module = TORCH.BatchNorm(4, dtype=torch.float64, convention=convention)
        module(torch.tensor(x))
        close(module.running_mean, new["batch_stats"]["mean"])
        close(module.running_var, new["batch_stats"]["var"])
    plain, ours = torch.nn.BatchNorm1d(4), TORCH.BatchNorm(4)
    assert [plain.eps, plain.momentum] == [ours.eps, ours.momentum]
    assert str(ours).replace("1e-05, momentum=0.1", "") != str(ours)
    theirs = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    layer = NNX.BatchNorm(4, rngs=nnx.Rngs(0))
    assert [theirs.epsilon, theirs.momentum] == [layer.epsilon, layer.momentum]


def test_a_mask_counts_what_it_shows():
    x, mask = RNG.normal(size=(7, 4)), np.arange(7)[:, None] < 5
    y, new = of_linen(jnp.asarray(x[:5]), convention="torch")
    layer = LINEN.BatchNorm(False, convention="torch", param_dtype=x.dtype)
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    masked, of_mask = layer.apply(variables, x, mask=jnp.asarray(mask), mutable=["batch_stats"])
    close(masked[:5], y)
    close(of_mask["batch_stats"]["var"], new["batch_stats"]["var"])


# Over devices.


@pytest.mark.parametrize("convention", ["flax", "torch"])
def test_named_axes_are_the_whole_batch(convention):
    """Output, gradient and statistics of shard_map over two axes, of vmap, and of groups."""
    x, delta = RNG.normal(size=(2, 8, 3)) * 3 + 2

    def call(x, delta, **knobs):
        layer = LINEN.BatchNorm(False, momentum=0.5, convention=convention, **knobs)
        state = {"mean": jnp.ones(3, x.dtype), "var": jnp.ones(3, x.dtype)}
        variables = {"params": {"scale": jnp.full(3, 2.0), "bias": jnp.ones(3)}}

        def run(x):
            return layer.apply({**variables, "batch_stats": state}, x, mutable=["batch_stats"])

        y, pull, new = jax.vjp(run, x, has_aux=True)
        return y, pull(delta)[0], new["batch_stats"]

    whole = call(jnp.asarray(x), jnp.asarray(delta))
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    rows = P(("a", "b"))
    spread = jax.shard_map(
        lambda x, delta: call(x, delta, axis_name=("a", "b")),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=(rows, rows, P()),
    )
    jax.tree.map(close, jax.jit(spread)(x, delta), whole)
    mapped = jax.vmap(lambda x, delta: call(x, delta, axis_name="a"), axis_name="a")
    y, g_x, new = mapped(*(v.reshape(4, 2, 3) for v in (x, delta)))
    jax.tree.map(close, (y.reshape(8, 3), g_x.reshape(8, 3)), whole[:2])
    jax.tree.map(lambda found, right: close(found, np.stack([right] * 4)), new, whole[2])
    if convention == "torch":
        return  # vmap has no groups; pmap would be one more program
    halves = call(jnp.asarray(x[:4]), jnp.asarray(delta[:4]))
    y, _, new = jax.pmap(
        lambda x, delta: call(x, delta, axis_name="a", axis_index_groups=[[0, 1], [2, 3]]),
        axis_name="a",
        devices=jax.devices()[:4],
    )(*(v.reshape(4, 2, 3) for v in (x, delta)))
    close(y[:2].reshape(4, 3), halves[0])
    close(new["var"][0], halves[2]["var"])


# Placement: the gate of the layer before.


def gates(report):
    """What each layer's gate comes to, behind a normalizer or not."""
    return [str(getattr(row.gate, "gate", row.gate)) for row in report.rows]


def test_gates_before_and_behind_the_activation():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(LINEN.BatchNorm(True, convention="torch")(nn.Dense(4)(x)))
            x = LINEN.BatchNorm(True)(nn.gelu(nn.Dense(4)(x)))
            return nn.Dense(2)(x)

    x = jnp.ones((3, 2))
    report = jaxnorm.linen.find_gates(Net(), Net().init(jax.random.key(0), x), x)
    assert gates(report) == ["relu", "gelu", "None"]
    assert report.rows[0].reason == "deferred to BatchNorm_0"

    kwargs = {"rngs": nnx.Rngs(0)}
    model = nnx.Sequential(
        nnx.Linear(2, 4, **kwargs), NNX.BatchNorm(4, **kwargs), nnx.relu,
        nnx.Linear(4, 4, **kwargs), nnx.gelu, NNX.BatchNorm(4, convention="torch", **kwargs),
        nnx.Linear(4, 2, **kwargs),
    )  # fmt: skip
    report = jaxnorm.nnx.convert(model, example_input=jnp.ones((3, 2)))
    assert gates(report) == ["relu", "gelu", "None"]
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 4), TORCH.BatchNorm(4, convention="flax"), torch.nn.ReLU(),
        torch.nn.Linear(4, 4), torch.nn.GELU(), TORCH.BatchNorm(4), torch.nn.Linear(4, 2),
    )  # fmt: skip
    report = torchnorm.convert(model, torch.rand(3, 2))
    assert gates(report) == ["relu", "gelu", "None"]


# Bad input: the same words in both packages, and nothing changed.

TEXTS = {
    "check_rank": [((3,),), ((3, 4), 3)],
    "check_channels": [((2, 5), 1, 4)],
    "check_features": [((2, 5), (4,)), ((5,), (4, 5))],
    "check_values": [((1, 4), 1), ((2, 4), 1, "group", "fewer groups")],
}
KNOBS = {
    "convention_of": [("tensorflow",), (None,)],
    "momentum_of": [(1.5, 0.9), (float("nan"), 0.9), (True, 0.9), ("0.9", 0.9)],
    "groups_of": [(3, 32, 4), ("convention", None, 4), (0, 32, 4), (2.0, 32, 4)],
}


@pytest.mark.parametrize("name", TEXTS | KNOBS)
def test_same_words(name):
    room = "checks" if name in TEXTS else "conventions"
    for arguments in (TEXTS | KNOBS)[name]:
        texts = []
        for package in (jaxnorm, torchnorm):
            module = importlib.import_module(f"{package.__name__}.normalizers.{room}")
            with pytest.raises((TypeError, ValueError), match=r": got .*, expected") as caught:
                getattr(module, name)(*arguments)
            texts.append(str(caught.value))
        assert texts[0] == texts[1]


X = np.ones((4, 3))
BAD = [
    (X[0], {}, "x: got shape (3,), expected at least 2 axes, a batch, channels"),
    (X[:1], {}, "x: got shape (1, 3), expected more than one value per channel: a single value"),
    (X, {"epsilon": float("nan")}, "got nan, expected a number > 0"),
    (X, {"epsilon": 0.0}, "got 0.0, expected a number > 0"),
    (X, {"momentum": float("inf")}, "momentum: got inf, expected a number in [0, 1]"),
    (X, {"convention": "keras"}, "convention: got 'keras', expected 'flax' or 'torch'"),
    (X[:, :2], {}, "x: got shape (4, 2), expected 3 channels along axis 1; move"),
]


@pytest.mark.parametrize(("x", "knobs", "text"), BAD)
def test_refused(x, knobs, text):
    match = re.escape(text)
    state = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    with pytest.raises(ValueError, match=match):
        LINEN.BatchNorm(False, use_scale=False, use_bias=False, **knobs).apply(
            {"batch_stats": state}, x, mutable=["batch_stats"]
        )
    with pytest.raises(ValueError, match=match):
        layer = NNX.BatchNorm(3, rngs=nnx.Rngs(0), **knobs)
        layer(jnp.asarray(x))
    arguments = {{"epsilon": "eps"}.get(name, name): value for name, value in knobs.items()}
    module = None
    with pytest.raises(ValueError, match=match):
        module = TORCH.BatchNorm(3, dtype=torch.float64, **arguments)
        module(torch.tensor(x))
    if module is not None:
        assert module.num_batches_tracked == 0


def test_a_batch_of_one_may_initialize_and_evaluate():
    """Two values are needed for statistics only."""
    x = jnp.ones((1, 3))
    layer = LINEN.BatchNorm()
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    assert layer.apply(variables, x, use_running_average=True).shape == (1, 3)
    assert NNX.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0))(x).shape == (1, 3)
    assert TORCH.BatchNorm(3).eval()(torch.ones(1, 3)).shape == (1, 3)
