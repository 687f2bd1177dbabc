"""Models that return what JAX cannot see into, and models that keep objects to note things on."""

import copy
import dataclasses
import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm
from jaxnorm.conversion.foreign import arrays_in
from jaxnorm.linen import LEAVE, find_gates, init_statistics, neuronwise

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")


class Normal:
    """A distribution that is no pytree."""

    def __init__(self, mean, scale):
        self.mean, self.scale = mean, scale

    def log_prob(self, value):
        """Up to a constant."""
        return -(((value - self.mean) / self.scale) ** 2) / 2 - jnp.log(self.scale)


@dataclasses.dataclass
class Record:
    """A dataclass that is no pytree."""

    logits: object


class Slotted:
    """An object without a dict."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def closure(z):
    return lambda more: more * z


#: (z, v) of two layers -> what the model returns; class in the report, gates of both.
OUTPUTS = {
    "object": (lambda z, v: Normal(z, jax.nn.softplus(v)), "Normal", None, "softplus"),
    "in a dict": (lambda z, v: {"pi": Normal(z, 1.0), "v": jnp.tanh(v)}, "Normal", None, "tanh"),
    "in a list": (lambda z, v: (jax.nn.relu(v), [Record(z)]), "Record", None, "relu"),
    "slots": (lambda z, v: (Slotted(z), jax.nn.relu(v)), "Slotted", None, "relu"),
    "function": (lambda z, v: (closure(z), jax.nn.relu(v)), "function", None, "relu"),
    "partial": (
        lambda z, v: (functools.partial(jnp.add, z), jax.nn.relu(v)),
        "partial",
        None,
        "relu",
    ),
    "method": (lambda z, v: (Normal(z, 1.0).log_prob, jnp.tanh(v)), "method", None, "tanh"),
    "generator": (lambda z, v: (each for each in (z, jax.nn.relu(v))), "generator", None, "relu"),
    "iterator": (lambda z, v: iter(map(jnp.sin, [z, v])), "map", None, None),
    "nested": (lambda z, v: Record({"a": [Slotted(z)]}), "Record", None, None),
    "activated": (lambda z, v: Record(jnp.tanh(z)), "Record", "tanh", None),
    "used elsewhere": (lambda z, v: (Record(z), jnp.tanh(z)), "others and tanh", None, None),
}


class Actor(nn.Module):
    """A hidden layer and two heads."""

    head: str

    @nn.compact
    def __call__(self, x):
        """Run it."""
        x = nn.tanh(nn.Dense(7, name="hidden")(x))
        return OUTPUTS[self.head][0](nn.Dense(3, name="z")(x), nn.Dense(3, name="v")(x))


class NnxActor(nnx.Module):
    """As `Actor`."""

    def __init__(self, head):
        rngs = nnx.Rngs(0)
        self.head, self.hidden = head, nnx.Linear(5, 7, rngs=rngs)
        self.z, self.v = nnx.Linear(7, 3, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        """Run it."""
        x = nnx.tanh(self.hidden(x))
        return OUTPUTS[self.head][0](self.z(x), self.v(x))


def variables():
    layer = {"kernel": np.ones((7, 3), "float32"), "bias": np.zeros(3, "float32")}
    first = {"kernel": np.ones((5, 7), "float32"), "bias": np.zeros(7, "float32")}
    return {"params": {"hidden": first, "z": layer, "v": layer}}


@pytest.mark.parametrize("host", ["linen", "nnx"])
@pytest.mark.parametrize("head", OUTPUTS)
def test_layers_in_objects_are_converted_and_unresolved(head, host):
    _, named, z, v = OUTPUTS[head]
    if host == "linen":
        report = find_gates(Actor(head), variables(), X)
        recorded = init_statistics(neuronwise(Actor(head)), variables(), X)
    else:
        model = NnxActor(head)
        report = jaxnorm.nnx.convert(model, example_input=X)
        jaxnorm.nnx.init_statistics(model, X)
        recorded = {n for n in ("hidden", "z", "v") if hasattr(getattr(model, n), "neuron_stats")}
    assert set(recorded) == {"hidden", "z", "v"}
    assert report["hidden"].gate == "tanh"
    assert not report["hidden"].unresolved
    for name, gate in (("z", z), ("v", v)):
        row = report[name]
        assert (row.gate, row.unresolved) == (gate, gate is None)
        if row.unresolved:
            known = f"it may be in an object in the output that is no pytree: {named}"
            assert row.reason in (known, f"read by {named}", known.replace(named, "Record"))
    assert "unresolved: " in str(report)


def test_the_actor_trains_in_its_coordinates():
    model = Actor("object")
    apply, params = neuronwise(model), variables()["params"]
    stats = init_statistics(apply, variables(), X)

    def loss(params, stats):
        return -apply({"params": params, "neuron_stats": stats}, X).log_prob(X[:, :3]).sum()

    batch = jax.jit(jax.grad(loss, 1))(params, stats)
    for name in ("hidden", "z", "v"):
        assert batch[name]["statistics"].samples == len(X)


@pytest.mark.parametrize("flag", [None, True, 3, 1.5, "name", jnp.float32, np.float32(2)], ids=str)
def test_flags_in_the_output_hide_nothing(flag):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Dense(3, name="unused")(x)
            return nn.Dense(3, name="used")(x), flag

    report = find_gates(Model(), Model().init(jax.random.key(0), X), X)
    assert report["unused"] == dataclasses.replace(
        report["unused"], gate=LEAVE, reason="its output is not used", unresolved=False
    )
    assert not report["used"].unresolved


def test_what_is_noted_down_on_the_model_is_a_result():
    class Model(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
            self.noted = nnx.Variable(jnp.zeros((6, 3)))

        def __call__(self, x):
            self.noted.set_value(nnx.relu(self.layer(x)))
            return x

    assert jaxnorm.nnx.convert(Model(), example_input=X)["layer"].gate == "relu"


def test_arrays_in_objects_that_hold_one_another():
    one, other = Record(X), Slotted(jnp.ones(2))
    one.back, one.self, other.value = other, one, [jnp.ones(3), {"a": one}]
    assert [a.shape for a in arrays_in(one)] == [(3,)]
    generator = (x for x in [jnp.ones(4)])
    assert [a.shape for a in arrays_in(generator)] == [(4,)]
    assert next(generator).shape == (4,)  # its code was not run


class Notes:
    """What a model keeps to look at later."""

    def __init__(self):
        self.last, self.all, self.named, self.calls = None, [], {}, 0

    def note(self, x):
        """Remember x in every way."""
        self.last, self.calls = x, self.calls + 1
        self.all.append((x, Record(x)))
        self.named["x"] = x
        self.new = x


class Noting(nn.Module):
    """A model with notes."""

    notes: Notes

    @nn.compact
    def __call__(self, x):
        """Run it."""
        x = nn.Dense(3)(x)
        self.notes.note(x)
        return x


class NnxNoting(nnx.Module):
    """As `Noting`."""

    def __init__(self, notes):
        self.notes, self.layer = notes, nnx.Linear(5, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        """Run it."""
        x = self.layer(x)
        self.notes.note(x)
        return x


@pytest.mark.parametrize("host", ["linen", "nnx"])
def test_the_watched_pass_leaves_nothing_on_foreign_objects(host):
    notes = Notes()
    notes.all.append("before")
    if host == "linen":
        model = Noting(notes)
        params = {"params": {"Dense_0": nn.Dense(3).init(jax.random.key(0), X)["params"]}}
        find_gates(model, params, X)
        init_statistics(jaxnorm.linen.neuronwise(model, {"*": None}), params, X)
    else:
        model = NnxNoting(notes)
        jaxnorm.nnx.convert(model, example_input=X)
        jaxnorm.nnx.init_statistics(model, X)
    assert not arrays_in(notes)
    assert (notes.last, notes.all, notes.named) == (None, ["before"], {})
    assert not hasattr(notes, "new")
    assert copy.deepcopy(model) is not None
    assert pickle.loads(pickle.dumps(notes)).all == ["before"]
    if host == "nnx":  # an ordinary call notes down what it always did
        model(X)
        assert notes.last.shape == (6, 3)
