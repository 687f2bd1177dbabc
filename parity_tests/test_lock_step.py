"""Training in neuron coordinates in lock step: linen and nnx with Optax against torch.optim.

One network, one start, the same batches: parameters and statistics after every step; and runs that
change the framework half-way. Only `jaxnorm.from_torch` and `to_torch` know of the layouts.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import jaxnorm
import torchnorm
from jaxnorm import from_torch, to_torch
from parity_tests.tolerances import LOCK_STEP, VISIBLE, slice_error

STEPS, HALF = 50, 20
#: Rounding errors of one step enter the next, so this is not the gate of a single step.
HOW: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class Mlp(linen.Module):
    """Dense layers, and a LayerNorm whose parameters are in no coordinates."""

    rule: jaxnorm.Rule

    @linen.compact
    def __call__(self, x):
        """Run it."""
        dense = functools.partial(jaxnorm.linen.Dense, rule=self.rule, **HOW)
        x = linen.relu(dense(16, gate="relu")(x))
        x = linen.LayerNorm(epsilon=1e-5, use_fast_variance=False, **HOW)(x)
        x = linen.silu(dense(12, gate="silu")(x))
        return dense(3, gate=None)(x)


class Convnet(linen.Module):
    """A convolution with stride and padding, another one in groups, a dense layer behind both."""

    rule: jaxnorm.Rule

    @linen.compact
    def __call__(self, x):
        """Run it."""
        conv = functools.partial(jaxnorm.linen.Conv, rule=self.rule, **HOW)
        x = linen.relu(conv(6, (3, 3), strides=2, padding=1, gate="relu")(x))
        x = linen.silu(conv(4, (3, 2), padding=1, feature_group_count=2, gate="silu")(x))
        x = x.reshape(len(x), -1)
        return jaxnorm.linen.Dense(3, gate=None, rule=self.rule, **HOW)(x)


def torch_mlp(rule):
    kwargs = {"rule": rule, "dtype": torch.float64}
    return nn.Sequential(
        torchnorm.Linear(5, 16, gate="relu", **kwargs), nn.ReLU(), nn.LayerNorm(16).double(),
        torchnorm.Linear(16, 12, gate="silu", **kwargs), nn.SiLU(),
        torchnorm.Linear(12, 3, gate=None, **kwargs),
    )  # fmt: skip


def torch_convnet(rule):
    kwargs = {"rule": rule, "dtype": torch.float64}
    return nn.Sequential(
        torchnorm.Conv2d(3, 6, 3, stride=2, padding=1, gate="relu", **kwargs), nn.ReLU(),
        torchnorm.Conv2d(6, 4, (3, 2), padding=1, groups=2, gate="silu", **kwargs), nn.SiLU(),
        nn.Flatten(), torchnorm.Linear(48, 3, gate=None, **kwargs),
    )  # fmt: skip


class Net(NamedTuple):
    """One network in both frameworks.

    Attributes:
        flax: rule -> module.
        torch: rule -> module.
        shape: of an input in Flax.
        options: of `from_torch`.
    """

    flax: Any
    torch: Any
    shape: tuple[int, ...]
    options: dict[str, Any]


NETS = {
    "mlp": Net(
        Mlp,
        torch_mlp,
        (5,),
        {"names": {"Dense_0": "0", "LayerNorm_0": "2", "Dense_1": "3", "Dense_2": "5"}},
    ),
    "convnet": Net(
        Convnet,
        torch_convnet,
        (6, 5, 3),
        {
            "names": {"Conv_0": "0", "Conv_1": "2", "Dense_0": "5"},
            "flattened": {"Dense_0": (3, 4, 4)},
        },
    ),
}
OPTIMIZERS = {
    "sgd": (optax.sgd(0.03, momentum=0.9), (torch.optim.SGD, {"lr": 0.03, "momentum": 0.9})),
    "adam": (optax.adam(0.01), (torch.optim.Adam, {"lr": 0.01})),
    "adamw": (
        optax.adamw(0.01, weight_decay=0.1),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ),
    "rmsprop": (
        optax.rmsprop(0.003, decay=0.99, eps_in_sqrt=False),
        (torch.optim.RMSprop, {"lr": 0.003, "alpha": 0.99}),
    ),
}


@functools.cache
def batches(net):
    """As many batches as steps: features of unlike scales and means, and something to learn."""
    rng, shape = np.random.default_rng(0), NETS[net].shape
    scales = np.exp(rng.standard_normal(shape[-1]))
    x = (rng.standard_normal((STEPS, 24, *shape)) + 1) * scales
    flat = (x / scales).reshape(STEPS, 24, -1)
    y = np.sin(flat @ rng.standard_normal((flat.shape[-1], 3)) / np.sqrt(flat.shape[-1]))
    return list(zip(x, y, strict=True))


def arrays(tree):
    """Tensors as arrays; bfloat16, which NumPy does not have, as it is."""

    def array(tensor):
        tensor = tensor.detach()
        return tensor.clone() if tensor.dtype == torch.bfloat16 else tensor.numpy().copy()

    return jax.tree.map(array, tree)


def tensors(tree):
    """Arrays as tensors."""
    return jax.tree.map(torch.from_numpy, tree)


class Torch:
    """A run in PyTorch."""

    def __init__(self, net, optimizer, rule):
        torch.manual_seed(0)
        kind, kwargs = OPTIMIZERS[optimizer][1]
        self.model = NETS[net].torch(torchnorm.Rule(**dict(rule)))
        inner = kind(self.model.parameters(), **kwargs)
        self.optimizer = torchnorm.optim.in_neuron_coordinates(inner, self.model)

    def step(self, x, y):
        """One; returns the loss."""
        x = np.moveaxis(x, -1, 1) if x.ndim > 2 else x
        self.optimizer.zero_grad()
        loss = ((self.model(torch.from_numpy(x)) - torch.from_numpy(y)) ** 2).mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def checkpoint(self, loss=None):
        """What is saved, with the moments under the names of the parameters."""
        moments = {}
        for name, parameter in self.model.named_parameters():
            for moment, value in self.optimizer.state[parameter].items():
                moments.setdefault(moment, {})[name] = value
        stats = self.optimizer.state_dict()["neuron_stats"]
        return Checkpoint(*map(arrays, (dict(self.model.state_dict()), stats, moments)), loss)


class Checkpoint(NamedTuple):
    """Of PyTorch, in NumPy."""

    params: dict[str, Any]
    stats: dict[str, Any]
    moments: dict[str, dict[str, Any]]
    loss: float | None


@functools.cache
def torch_run(net, optimizer, rule):
    """The checkpoints before and after every step."""
    run = Torch(net, optimizer, rule)
    return [run.checkpoint(), *(run.checkpoint(run.step(x, y)) for x, y in batches(net))]


#: Less time in the compiler than these few steps would gain.
QUICK = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnames="net", compiler_options=QUICK)
def flax_gradients(net, rule, params, stats, x, y):
    """At the parameters and at the statistics; compiled once for all values of `decay`."""

    def loss(params, stats):
        z = NETS[net].flax(rule).apply({"params": params, "neuron_stats": stats}, x)
        return jnp.mean((z - y) ** 2)

    return jax.grad(loss, argnums=(0, 1))(params, stats)


merged = jax.jit(jaxnorm.update_statistics, compiler_options=QUICK)


@functools.partial(jax.jit, static_argnames="optimizer", compiler_options=QUICK)
def updated(optimizer, grads, state, params, stats):
    """(parameters, state) after a step."""
    tx = jaxnorm.in_neuron_coordinates(OPTIMIZERS[optimizer][0])
    updates, state = tx.update(grads, state, params, neuron_stats=stats)
    return optax.apply_updates(params, updates), state


class Linen:
    """A run in Flax linen, from a checkpoint of PyTorch."""

    def __init__(self, net, optimizer, rule, start):
        self.net, self.optimizer, self.options = net, optimizer, NETS[net].options
        self.rule = jaxnorm.Rule(**dict(rule))
        x, model = batches(net)[0][0], NETS[net].flax(self.rule)
        like = jax.eval_shape(model.init, jax.random.key(0), x)
        self.like = like["params"], jaxnorm.linen.init_statistics(model, like, x)
        self.params, self.stats = self.converted(start)
        tx = jaxnorm.in_neuron_coordinates(OPTIMIZERS[optimizer][0])
        self.state = tx.init(self.params)

    def step(self, x, y):
        """One."""
        grads, batch = flax_gradients(self.net, self.rule, self.params, self.stats, x, y)
        self.stats = merged(self.stats, batch)
        self.params, self.state = updated(
            self.optimizer, grads, self.state, self.params, self.stats
        )

    def converted(self, checkpoint):
        """(parameters, statistics) of PyTorch."""
        both = zip((checkpoint.params, checkpoint.stats), self.like, strict=True)
        return tuple(from_torch(tree, like, **self.options) for tree, like in both)

    def error(self, checkpoint):
        """The worst of all entries against PyTorch."""
        own = jax.tree.leaves((self.params, self.stats))
        pairs = zip(own, jax.tree.leaves(self.converted(checkpoint)), strict=True)
        return max(distance(a, b) for a, b in pairs)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These products are too small for several, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def distance(a, b):
    """Relative to the largest entry; what is 0 has to be 0."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return slice_error(a, b, axes=()) if b.any() else np.abs(a).max(initial=0)


ONE, MANY = {}, {"decay": 0.9}
RUNS = [
    *(("mlp", optimizer, MANY) for optimizer in OPTIMIZERS),
    ("mlp", "sgd", ONE),
    ("convnet", "adam", ONE),
    ("convnet", "adamw", MANY),
    ("mlp", "adam", {"statistics_rows": 16, "decay": 0.5}),
    ("convnet", "adam", {"statistics_rows": 5}),
    ("mlp", "adamw", {"statistics_every": 3, "decay": 0.9}),
    ("convnet", "sgd", {"statistics_every": 4}),
    ("mlp", "adam", {"weighting": "error"}),
    ("convnet", "rmsprop", {"scale": "layer"}),
    ("mlp", "adamw", {"statistics_dtype": "bfloat16"}),
    ("convnet", "sgd", {"statistics_dtype": "bfloat16", "scale": "layer"}),
    ("convnet", "sgd", {"step_size": "standardized"}),
    ("mlp", "sgd", {"weighting": "uniform", "shrinkage": 0.0}),
]


#: Every pair of those above; an optimizer does not know of the network, nor of the rule.
MORE_RUNS = [run for run in itertools.product(NETS, OPTIMIZERS, (ONE, MANY)) if run not in RUNS]


@pytest.mark.parametrize(
    ("net", "optimizer", "rule"),
    [*RUNS, *(pytest.param(*run, marks=pytest.mark.slow) for run in MORE_RUNS)],
    ids=str,
)
def test_every_step(net, optimizer, rule):
    """Parameters and statistics of both, from one start to the end."""
    start, *expected = torch_run(net, optimizer, tuple(rule.items()))
    run = Linen(net, optimizer, tuple(rule.items()), start)
    first, errors, taken = run.params, [], []
    for (x, y), checkpoint in zip(batches(net), expected, strict=True):
        before = jax.device_get(jax.tree.leaves(run.stats))
        run.step(x, y)
        errors.append(run.error(checkpoint))
        new = zip(before, jax.device_get(jax.tree.leaves(run.stats)), strict=True)
        taken.append(sum(bool((a != b).any()) for a, b in new) > len(run.stats))
    print(f"worst of {net}, {optimizer}, {rule}: {max(errors):.1e}")
    assert max(errors) <= LOCK_STEP
    # It is training, and the statistics are taken (not only counted) when they should be.
    losses = [checkpoint.loss for checkpoint in expected]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert min(map(distance, jax.tree.leaves(run.params), jax.tree.leaves(first))) > VISIBLE
    every, last = rule.get("statistics_every", 1 if "decay" in rule else 16), 0
    for step in range(STEPS):
        due = step == 0 or step - last >= min(every, max(1, step // 10))
        assert taken[step] == due
        last = step if due else last


def with_moments(run, checkpoint, **kept):
    """Give the inner Adam of a run its state."""
    moments = {
        ours: from_torch(checkpoint.moments[name], run.params, **run.options)
        for ours, name in (("mu", "exp_avg"), ("nu", "exp_avg_sq"))
    }
    count = jnp.asarray(HALF, jnp.int32)
    run.state = optax.tree.set(run.state, **(moments | {"count": count} | kept))


@pytest.mark.parametrize("net", NETS)
def test_from_torch_to_flax_in_the_middle_of_training(net):
    arguments = (net, "adamw", tuple(MANY.items()))
    checkpoints = torch_run(*arguments)
    middle = checkpoints[HALF]
    rest = list(zip(batches(net)[HALF:], checkpoints[HALF + 1 :], strict=True))

    def run(steps, without=None):
        own = Linen(*arguments, middle)
        blank = optax.tree.get(own.state, without) if without in ("mu", "nu", "count") else None
        with_moments(own, middle, **({} if blank is None else {without: blank}))
        if without == "statistics":
            own.stats = jax.tree.map(jnp.zeros_like, own.stats)
        for (x, y), checkpoint in rest[:steps]:
            own.step(x, y)
            yield own.error(checkpoint)

    worst = max(run(len(rest)))
    print(f"worst of {net}, torch then flax: {worst:.1e}")
    assert worst <= LOCK_STEP
    for part in ("mu", "nu", "count", "statistics"):
        assert max(run(3, without=part)) > VISIBLE, part


@pytest.mark.parametrize(("net", "optimizer"), [("mlp", "adam"), ("convnet", "sgd")])
def test_from_flax_to_torch_in_the_middle_of_training(net, optimizer):
    arguments = (net, optimizer, tuple(MANY.items()))
    run, there = Linen(*arguments, torch_run(*arguments)[0]), Torch(*arguments)
    for x, y in batches(net)[:HALF]:
        run.step(x, y)
    own = there.optimizer.state_dict()
    named = dict(there.model.named_parameters())
    names = {"adam": {"mu": "exp_avg", "nu": "exp_avg_sq"}, "sgd": {"trace": "momentum_buffer"}}
    moments = {
        name: to_torch(optax.tree.get(run.state, ours), named, **run.options)
        for ours, name in names[optimizer].items()
    }
    for n, key in enumerate(named):
        own["state"][n] = {name: torch.from_numpy(moments[name][key]) for name in moments}
        if optimizer == "adam":
            own["state"][n]["step"] = torch.tensor(float(HALF))
    own["neuron_stats"] = tensors(to_torch(run.stats, own["neuron_stats"], **run.options))
    params = to_torch(run.params, there.model.state_dict(), **run.options)
    there.model.load_state_dict(tensors(params))
    there.optimizer.load_state_dict(own)
    assert run.error(there.checkpoint()) == 0
    for x, y in batches(net)[HALF:]:
        there.step(x, y)
        run.step(x, y)
        assert run.error(there.checkpoint()) <= LOCK_STEP


class Nnx(nnx.Module):
    """As `Mlp`."""

    def __init__(self, rule):
        kwargs = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64, "dtype": jnp.float64}
        ours = {"rule": rule, **kwargs}
        self.a = jaxnorm.nnx.Linear(5, 16, gate="relu", **ours)
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, use_fast_variance=False, **kwargs)
        self.b = jaxnorm.nnx.Linear(16, 12, gate="silu", **ours)
        self.c = jaxnorm.nnx.Linear(12, 3, gate=None, **ours)

    def __call__(self, x):
        """Run it."""
        x = self.norm(jax.nn.relu(self.a(x)))
        return self.c(jax.nn.silu(self.b(x)))


def test_nnx_from_the_middle_of_training():
    """All at once: parameters and statistics of PyTorch into the state of the model."""
    names = {"a": "0", "norm": "2", "b": "3", "c": "5"}
    checkpoints = torch_run("mlp", "sgd", tuple(MANY.items()))
    model = Nnx(jaxnorm.Rule(**MANY))
    jaxnorm.nnx.init_statistics(model, batches("mlp")[0][0])
    optimizer = jaxnorm.nnx.Optimizer(model, jaxnorm.in_neuron_coordinates(OPTIMIZERS["sgd"][0]))

    def own():
        return nnx.to_pure_dict(nnx.state(model, jaxnorm.nnx.PARAMS_AND_STATISTICS))

    def converted(checkpoint):
        return from_torch(checkpoint.params | checkpoint.stats, own(), names=names)

    nnx.update(model, converted(checkpoints[HALF]))
    like = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    held = nnx.to_pure_dict(nnx.state(optimizer.opt_state))
    buffers = checkpoints[HALF].moments["momentum_buffer"]
    held["inner_state"][0]["trace"] = from_torch(buffers, like, names=names)
    nnx.update(optimizer.opt_state, held)

    @nnx.jit
    def step(model, optimizer, x, y):
        by = nnx.DiffState(0, jaxnorm.nnx.PARAMS_AND_STATISTICS)
        grads = nnx.grad(lambda model: jnp.mean((model(x) - y) ** 2), argnums=by)(model)
        optimizer.update(model, grads)

    for (x, y), checkpoint in zip(batches("mlp")[HALF:], checkpoints[HALF + 1 :], strict=True):
        step(model, optimizer, jnp.asarray(x), jnp.asarray(y))
        found, expected = jax.tree.leaves(own()), jax.tree.leaves(converted(checkpoint))
        assert max(map(distance, found, expected)) <= LOCK_STEP
