"""Batch Normalization Preconditioning against its pseudo-code in NumPy, and JAX against PyTorch."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen
from torch.utils.checkpoint import checkpoint

import jaxnorm
import torchnorm
from jaxnorm.tests import nets as nets_optax
from parity_tests import steps
from parity_tests.cases import geometries
from parity_tests.implementations import in_torch
from parity_tests.steps import Group
from parity_tests.tolerances import LOCK_STEP, SAME_STEP, SAME_STEPS, VISIBLE

#: Name -> (layer, family).
LAYERS: dict[str, Any] = {
    "dense": (None, "scales"),
    "more inputs than samples": (None, "wide"),
    "axes": (None, "axes"),
    "no bias": (None, "no_bias"),
    "conv": (geometries.CONVOLUTIONS["same, stride 2, even window"], "scales"),
    "conv, groups": (geometries.CONVOLUTIONS["groups, dilation"], "scales"),
    "conv, no bias": (geometries.CONVOLUTIONS["same"], "no_bias"),
    "conv, circular": (geometries.CONVOLUTIONS["circular, even window"], "scales"),
    "conv, mask": (geometries.CONVOLUTIONS["mask"], "scales"),
    "transposed": (geometries.TRANSPOSED["same, stride 2"], "scales"),
    "transposed, torch": (geometries.TRANSPOSED["torch, groups, dilation"], "scales"),
    "heads": (geometries.PRODUCTS["heads"], "scales"),
    "mixed": (geometries.PRODUCTS["groups first, all mixed"], "scales"),
}
IN_JAX = [name for name in LAYERS if name != "transposed, torch"]
#: What XLA compiles only to give the same path once more: for `pytest -m slow`.
SLOW = ("axes", "conv", "conv, circular", "heads", "conv, no bias", "no bias", "transposed")
IN_TORCH = [
    name
    for name, arguments in LAYERS.items()
    if in_torch.supports(steps.several(*arguments, count=1)[0])
]


def bnp(
    group: Group,
    memory: Any,
    rho: float = 0.99,
    eps1: float = 1e-2,
    eps2: float = 1e-4,
    taps: int | None = None,
) -> Any:
    """Algorithm 2, line by line; with `taps` one mean and variance for each channel."""
    h, _, g_w, g_b, mask = group
    n, m = h.shape
    mu, sigma2 = (np.zeros(m), np.ones(m)) if memory is None else memory
    entries = h if taps is None else h.reshape(n * taps, m // taps)  # taps lie first
    mu_a = np.zeros(entries.shape[1]) if g_b is None else entries.mean(0)
    sigma2_a = ((entries - mu_a) ** 2).mean(0)
    mu = rho * mu + (1 - rho) * np.tile(mu_a, taps or 1)
    sigma2 = rho * sigma2 + (1 - rho) * np.tile(sigma2_a, taps or 1)
    s2 = sigma2 + eps1 * sigma2.max() + eps2
    q2 = max(m / n, 1)
    if g_b is None:
        return g_w / s2 / q2 * mask, None, (mu, sigma2)
    new_w, new_b = np.zeros_like(g_w), np.zeros(len(g_w))
    for i in range(len(g_w)):
        for j in range(m):
            new_w[i, j] = 1 / q2 * (g_w[i, j] - mu[j] * g_b[i]) / s2[j]
    new_w *= mask
    for i in range(len(g_w)):
        new_b[i] = 1 / q2 * g_b[i] - sum(new_w[i, j] * mu[j] for j in range(m))
    return new_w, new_b, (mu, sigma2)


def around(**kwargs: Any) -> Any:
    """`torchnorm.optim.bnp` with these knobs."""
    return lambda optimizer, model: torchnorm.optim.bnp(optimizer, model, **kwargs)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in IN_JAX]
)
def test_optax_side_is_the_published_algorithm(name):
    every = steps.several(*LAYERS[name])
    expected = steps.published(every, bnp)
    actual = steps.optax_side(every, jaxnorm.scale_by_bnp(), jaxnorm.BNP)
    assert steps.error(every, actual, expected) <= SAME_STEP


@pytest.mark.parametrize("name", IN_TORCH)
def test_torch_side_is_the_published_algorithm(name):
    every = steps.several(*LAYERS[name])
    expected = steps.published(every, bnp)
    assert steps.error(every, steps.torch_side(every, around()), expected) <= SAME_STEP


def test_any_rule_that_scales_and_merged_statistics_will_do():
    every, rule = (
        steps.several(*LAYERS["conv"]),
        jaxnorm.Rule(weighting="error", scale="layer", statistics_every=1),
    )
    expected = steps.published(every, bnp)
    actual = steps.optax_side(every, jaxnorm.scale_by_bnp(), rule, merged=True)
    assert steps.error(every, actual, expected) <= SAME_STEP


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_every_knob(name):
    kwargs = {"rho": 0.3, "eps1": 0.5, "eps2": 3.0}
    every = steps.several(*LAYERS[name])
    expected = steps.published(every, lambda group, memory: bnp(group, memory, **kwargs))
    assert steps.error(every, steps.published(every, bnp), expected) > VISIBLE
    tx = jaxnorm.scale_by_bnp(**kwargs)
    assert steps.error(every, steps.optax_side(every, tx, jaxnorm.BNP), expected) <= SAME_STEP
    assert steps.error(every, steps.torch_side(every, around(**kwargs)), expected) <= SAME_STEP


@pytest.mark.parametrize("name", ["conv, groups", "conv, no bias"])
def test_one_mean_for_each_channel(name):
    every = steps.several(*LAYERS[name])
    taps = every[0].view.taps
    expected = steps.published(every, lambda group, memory: bnp(group, memory, rho=0.5, taps=taps))
    kwargs: Any = {"rho": 0.5, "per_channel": True}
    tx = jaxnorm.scale_by_bnp(**kwargs)
    assert steps.error(every, steps.optax_side(every, tx, jaxnorm.BNP), expected) <= SAME_STEP
    assert steps.error(every, steps.torch_side(every, around(**kwargs)), expected) <= SAME_STEP
    if taps > 1:
        per_tap = steps.published(every, lambda group, memory: bnp(group, memory, rho=0.5))
        assert steps.error(every, per_tap, expected) > VISIBLE


def test_online_learning():
    """One sample a step: its variance is 0, what is kept is not."""
    every = [replace(c, x=c.x[:1], delta=c.delta[:1]) for c in steps.several(*LAYERS["dense"])]
    expected = steps.published(every, bnp)
    actual = steps.optax_side(every, jaxnorm.scale_by_bnp(), jaxnorm.BNP)
    assert steps.error(every, actual, expected) <= SAME_STEP
    assert steps.error(every, steps.torch_side(every, around()), expected) <= SAME_STEP


def test_large_means_do_not_cancel():
    """In float32, once the statistics are taken about the mean of the batch before."""
    x, y = nets_optax.data(dtype=np.float32)
    x = x - x.mean(0, keepdims=True) + 1e3
    expected = np.asarray(x, np.float64).var(0)
    net = nets_optax.make("linen converted", jaxnorm.BNP, dtype=np.float32)
    tx = jaxnorm.scale_by_bnp(rho=0.0)
    state, stats = tx.init(net.params), net.stats
    step = steps.step_of(net, tx)
    for _ in range(2):
        _, state, _, stats = step(state, stats, x, y)
    variance = state.variance["Dense_0"]["kernel"][:, 0]
    np.testing.assert_allclose(variance, expected, rtol=1e-4)
    model = steps.torch_network().float()
    optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.0), model, rho=0.0)
    steps.in_plain_torch(model, optimizer).train(np.asarray(x), np.asarray(y))
    variance = optimizer.state_dict()["bnp"]["0"]["variance"][0]
    np.testing.assert_allclose(variance, expected, rtol=1e-4)


def test_training_in_lock_step():
    """Unconverted models, SGD with momentum around, against NumPy and each other."""
    network = steps.Network(lambda group, memory: bnp(group, memory, rho=0.9))
    tx = optax.chain(jaxnorm.scale_by_bnp(rho=0.9), optax.sgd(3e-3, momentum=0.9))
    model = steps.torch_network()
    optimizer = torch.optim.SGD(model.parameters(), 3e-3, momentum=0.9)
    torchnorm.optim.bnp(optimizer, model, rho=0.9)
    flax = steps.in_linen(tx, jaxnorm.BNP)
    plain = steps.in_plain_torch(model, optimizer)
    before = copy.deepcopy(network.layers)
    for x, y in steps.batches(6):
        network.train(x, y, 3e-3, 0.9)
        flax.train(x, y)
        plain.train(x, y)
        assert steps.distance(flax.layers(), network.layers) <= SAME_STEP
        assert steps.distance(plain.layers(), network.layers) <= SAME_STEP
        assert steps.distance(plain.layers(), flax.layers()) <= SAME_STEP
    assert steps.distance(network.layers, before) > VISIBLE


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_torch_micro_batches_and_converted_models(converted, shards):
    """Gradients that are accumulated have their inputs as one batch."""
    network = steps.Network(bnp)
    model = steps.torch_network()
    if converted:
        torchnorm.convert(model, torch.ones(2, 5, dtype=torch.float64))
    optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.01), model)
    for x, y in steps.batches(3):
        network.train(x, y, 0.01, 0.0)
        with torch.enable_grad():  # a pass of which nothing is learned leaves no trace
            (model(torch.tensor(7 * x + 1)) * 7).sum().backward()
        model.zero_grad()
        for part, target in zip(np.split(x, shards), np.split(y, shards), strict=True):
            z = model(torch.tensor(part))
            (((z - torch.tensor(target)) ** 2).sum() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    layers = steps.in_plain_torch(model, optimizer).layers()
    assert steps.distance(layers, network.layers) <= SAME_STEP


def test_jax_micro_batches():
    """Statistics add up as gradients do."""
    x, y = nets_optax.data()
    tx = jaxnorm.scale_by_bnp()
    net = nets_optax.make("linen converted", jaxnorm.BNP)

    @jax.jit
    def updates(parts: Any) -> Any:
        every = [net.grads(net.params, net.stats, x, y) for x, y in parts]
        grads, batch = jax.tree.map(lambda *parts: sum(parts), *every)
        return tx.update(grads, tx.init(net.params), neuron_stats=batch)[0]

    parts = list(zip(np.split(x, 3), np.split(y, 3), strict=True))
    both = net.layers(updates(parts)), net.layers(updates([(x, y)]))
    for a, e in zip(*both, strict=True):
        np.testing.assert_allclose(a[0], e[0], rtol=SAME_STEPS)


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("nnx", "linen converted")),
        "nnx converted",
    ],
)
def test_every_kind_of_flax_model(kind):
    x, y = nets_optax.data()
    tx = jaxnorm.scale_by_bnp()
    found = []
    for each in ("linen", kind):
        net = nets_optax.make(each, jaxnorm.BNP)
        step, state = steps.step_of(net, tx), tx.init(net.params)
        for _ in range(2):
            updates, state, _, _ = step(state, net.stats, x, y)
        found.append(net.layers(updates))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=SAME_STEP)
        np.testing.assert_allclose(a[1], b[1], rtol=SAME_STEP)


class _Stack(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        def block(mdl: Any, x: Any) -> Any:
            rule = jaxnorm.Rule(statistics_every=1)
            return jaxnorm.linen.Dense(5, gate="tanh", rule=rule, param_dtype=np.float64, name="d")(
                x
            )

        axes = {"params": 0, "neuron_stats": 0}
        looped = linen.scan(
            lambda mdl, x, _: (linen.tanh(block(mdl, x)), None),
            variable_axes=axes,
            split_rngs={"params": True},
            length=3,
        )
        return looped(self, x, None)[0]


def test_layers_stacked_by_scan():
    """Each of them is a layer of its own."""
    x = nets_optax.data()[0]
    model, tx = _Stack(), jaxnorm.scale_by_bnp()
    params = model.init(jax.random.key(0), x)["params"]
    stats = jaxnorm.linen.init_statistics(model, {"params": params}, x)

    def loss(params: Any, stats: Any) -> Any:
        return jnp.sum(model.apply({"params": params, "neuron_stats": stats}, x) ** 2)

    @jax.jit
    def step(params: Any, stats: Any) -> Any:
        grads, batch = jax.grad(loss, (0, 1))(params, stats)
        return grads, tx.update(grads, tx.init(params), params, neuron_stats=batch)[0]

    grads, updates = step(params, stats)
    h = np.asarray(x)
    for n in range(3):
        g_w, g_b = (np.asarray(grads["d"][name][n]) for name in ("kernel", "bias"))
        new_w, new_b, _ = bnp(Group(h, h, g_w.T, g_b), None)
        np.testing.assert_allclose(updates["d"]["kernel"][n], new_w.T, rtol=LOCK_STEP)
        np.testing.assert_allclose(updates["d"]["bias"][n], new_b, rtol=LOCK_STEP)
        w, b = (np.asarray(params["d"][name][n]) for name in ("kernel", "bias"))
        h = np.tanh(h @ w + b)


@pytest.mark.parametrize("masked", ["bias", "kernel"])
def test_what_is_masked(masked):
    """Without a bias to move: second moments about zero; without a kernel: left out."""
    x, y = nets_optax.data()
    net = nets_optax.make("linen converted", jaxnorm.BNP)
    learned = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != masked, net.params)
    tx = optax.masked(jaxnorm.scale_by_bnp(), learned)
    updates, *_ = steps.step_of(net, tx)(tx.init(net.params), net.stats, x, y)
    grads, *_ = steps.step_of(net, optax.with_extra_args_support(optax.identity()))(
        optax.EmptyState(), net.stats, x, y
    )
    (kernel, bias), plain = net.layers(updates)[0], net.layers(grads)[0]
    if masked == "kernel":
        assert (kernel == plain[0]).all()
    else:
        group = Group(np.asarray(x), np.asarray(x), np.asarray(plain[0]).T, None)
        np.testing.assert_allclose(kernel, bnp(group, None)[0].T, rtol=SAME_STEP)
    assert (bias == plain[1]).all()


def test_torch_frozen_parameters():
    """A frozen bias counts as none, a layer with a frozen weight is left out."""
    for frozen in ("bias", "weight"):
        model = steps.torch_network()
        getattr(model[0], frozen).requires_grad_(False)
        optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.0), model)
        x, y = steps.batches(1)[0]
        (((model(torch.tensor(x)) - torch.tensor(y)) ** 2).sum() / 2).backward()
        plain = [None if p.grad is None else p.grad.clone() for p in model[0].parameters()]
        optimizer.step()
        if frozen == "bias":
            expected = bnp(Group(x, x, plain[0].numpy(), None), None)[0]
            np.testing.assert_allclose(model[0].weight.grad, expected, rtol=SAME_STEPS)
        else:
            assert torch.equal(model[0].bias.grad, plain[1])


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_closures_and_schedulers(name):
    """A closure makes its gradients inside of the step."""
    found = []
    for closed in (False, True):
        model = steps.torch_network()
        optimizer = getattr(torch.optim, name)(model.parameters(), 0.01)
        torchnorm.optim.bnp(optimizer, model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for x, y in steps.batches(3):

            def closure(x=x, y=y, model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = ((model(torch.tensor(x)) - torch.tensor(y)) ** 2).sum()
                loss.backward()
                return loss

            if closed:
                assert optimizer.step(closure).requires_grad
            else:
                closure()
                optimizer.step()
            scheduler.step()
        found.append(steps.in_plain_torch(model, optimizer).layers())
    assert steps.distance(*found) == 0


def test_torch_state_dict_goes_round():
    """Through a file, in the middle of training, into a new optimizer of the same kind."""
    every = steps.batches(6)
    straight, halfway = [], io.BytesIO()

    def make() -> Any:
        model = steps.torch_network()
        optimizer = torch.optim.SGD(model.parameters(), 0.003, momentum=0.9)
        return model, torchnorm.optim.bnp(optimizer, model, rho=0.5)

    model, optimizer = make()
    for n, batch in enumerate(every):
        if n == 3:
            torch.save((model.state_dict(), optimizer.state_dict()), halfway)
        steps.in_plain_torch(model, optimizer).train(*batch)
    straight = steps.in_plain_torch(model, optimizer).layers()
    halfway.seek(0)
    again, other = make()
    weights, state = torch.load(halfway)
    assert set(state) == {"state", "param_groups", "bnp"}
    again.load_state_dict(weights)
    other.load_state_dict(state)
    for batch in every[3:]:
        steps.in_plain_torch(again, other).train(*batch)
    assert steps.distance(steps.in_plain_torch(again, other).layers(), straight) == 0
    other.load_state_dict(make()[1].state_dict())  # of one that has not stepped yet
    with pytest.raises(ValueError, match="state_dict: got one without 'bnp'"):
        other.load_state_dict({n: v for n, v in state.items() if n != "bnp"})
    with pytest.raises(ValueError, match=r"state_dict: got bnp of \['0'\]"):
        other.load_state_dict(state | {"bnp": {"0": state["bnp"]["0"]}})


def test_not_finite_batches_are_not_kept():
    """Their gradients are not finite either; those of the next batch are."""
    model = steps.torch_network()
    optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.0), model)
    net, tx = nets_optax.make("linen converted", jaxnorm.BNP), jaxnorm.scale_by_bnp()
    state, step = tx.init(net.params), steps.step_of(net, tx)
    start = copy.deepcopy(model.state_dict())
    for n, (x, y) in enumerate(steps.batches(2)):
        x = np.where((n == 0) & (np.arange(x.size).reshape(x.shape) == 0), np.nan, x)
        steps.in_plain_torch(model, optimizer).train(x, y)
        model.load_state_dict(start)
        updates, state, _, _ = step(state, net.stats, x, y)
        assert all(p.grad.isfinite().all() for p in model.parameters()) == (n > 0)
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(updates)) == (n > 0)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_dtypes_are_kept(dtype):
    x, y = nets_optax.data(dtype=dtype)
    net, tx = nets_optax.make("linen", jaxnorm.BNP, dtype=dtype), jaxnorm.scale_by_bnp()
    updates, state, _, _ = steps.step_of(net, tx)(tx.init(net.params), net.stats, x, y)
    assert {a.dtype.name for a in jax.tree.leaves(updates)} == {dtype}
    assert {a.dtype.name for a in jax.tree.leaves(state)} == {"float32"}
    model = steps.torch_network().to(getattr(torch, dtype))
    optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.0), model)
    model(torch.ones(4, 5, dtype=getattr(torch, dtype))).sum().backward()
    optimizer.step()
    assert {str(p.grad.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    memory = optimizer.state_dict()["bnp"]["0"].values()
    assert {value.dtype for value in memory} == {torch.float32}


def test_optax_errors():
    x, y = nets_optax.data()
    net, tx = nets_optax.make("linen converted", jaxnorm.BNP), jaxnorm.scale_by_bnp()
    state = tx.init(net.params)
    grads, batch = jax.tree.map(jnp.ones_like, (net.params, net.stats))
    for stats, match in (
        (None, "neuron_stats: got None"),
        ({}, "neuron_stats: got no layer"),
        (net.stats, "'Dense_0' that are of no batch"),
        ({"Dense_7": batch["Dense_0"]}, "'Dense_7', expected only of layers"),
        ({"Dense_0": batch["Dense_1"]}, "statistics of shape"),
    ):
        with pytest.raises(ValueError, match=match):
            tx.update(grads, state, net.params, neuron_stats=stats)
    broken = jax.jit(lambda stats: tx.update(grads, state, neuron_stats=stats)[0])(net.stats)
    assert not any(g.any() for g in jax.tree.leaves(broken))  # no step
    without = dict(batch)
    without["Dense_0"] = {"statistics": batch["Dense_0"]["statistics"].replace(layer_second=None)}
    with pytest.raises(ValueError, match="without 'layer_second' for 'Dense_0'"):
        tx.update(grads, state, neuron_stats=without)
    slow = nets_optax.make("linen converted", jaxnorm.Rule(weighting="uniform", decay=0.5))
    *_, averaged = steps.step_of(slow, tx)(state, slow.stats, x, y)
    with pytest.raises(ValueError, match="averaged over several"):
        tx.update(grads, state, neuron_stats=averaged)
    with pytest.raises(ValueError, match=r"rho: got 1.0, expected a number in \[0, 1\)"):
        jaxnorm.scale_by_bnp(rho=1.0)
    with pytest.raises(TypeError, match="eps1: got 'a'"):
        jaxnorm.scale_by_bnp(eps1="a")  # type: ignore[arg-type]


def test_torch_errors():
    model = steps.torch_network()
    sgd = lambda: torch.optim.SGD(model.parameters(), 0.1)  # noqa: E731
    bnp = torchnorm.optim.bnp
    with pytest.raises(ValueError, match=r"rho: got 1.0, expected a number in \[0, 1\)"):
        bnp(sgd(), model, rho=1.0)
    with pytest.raises(TypeError, match="optimizer: got int"):
        bnp(3, model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: got int"):
        bnp(sgd(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optimizer: got LBFGS"):
        bnp(torch.optim.LBFGS(model.parameters()), model)
    with pytest.raises(ValueError, match="optimizer: got none of the weights"):
        bnp(sgd(), torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="optimizer: got one with bnp already"):
        bnp(bnp(sgd(), model), model)
    shared = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)).double()
    shared[1].weight = shared[0].weight
    with pytest.raises(ValueError, match="got one weight in the layers '0' and '1'"):
        bnp(torch.optim.SGD(shared.parameters(), 0.1), shared)
    rule = torchnorm.Rule(gradient="preconditioned")
    ours = torchnorm.Linear(5, 3, gate=None, rule=rule)
    with pytest.raises(ValueError, match="gradient='preconditioned'"):
        bnp(torch.optim.SGD(ours.parameters(), 0.1), ours)
    recorded = torchnorm.Linear(5, 3, gate=None)
    inside = torch.optim.SGD(recorded.parameters(), 0.1)
    torchnorm.optim.in_neuron_coordinates(inside, recorded)
    with pytest.raises(ValueError, match="in neuron coordinates already"):
        bnp(inside, recorded)
    optimizer = bnp(sgd(), model)
    model(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="bnp: got no inputs of '0' since the last step"):
        optimizer.step()


def test_several_processes_are_refused(monkeypatch):
    """Each would keep the moments of its own share, and the replicas would part."""
    model = steps.torch_network()
    optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.1), model)
    model(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="bnp: got 2 processes, expected one"):
        optimizer.step()


def test_torch_checkpointing_and_autocast():
    x, y = (torch.tensor(a) for a in steps.batches(1)[0])
    found = []
    for checkpointed in (False, True):
        model = steps.torch_network()
        optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.1), model)
        z = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        (z - y).square().sum().backward()
        optimizer.step()
        found.append(steps.in_plain_torch(model, optimizer).layers())
    assert steps.distance(*found) == 0
    model = steps.torch_network().float()
    optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.1), model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = (model(x.float()) - y.float()).square().sum()
    loss.backward()
    optimizer.step()
    memory = optimizer.state_dict()["bnp"]["2"]["variance"]
    assert memory.dtype == torch.float32
    assert memory.isfinite().all()


def test_copies_of_the_model_are_not_gathered():
    """Averaged weights, or a model that is saved whole."""
    model = steps.torch_network()
    optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.1), model)
    x = torch.ones(2, 5, dtype=torch.float64)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(x).sum().backward()
    model(x).sum().backward()
    expected = model(x).detach()
    assert torch.equal(other(x), expected)
    optimizer.step()
    mean = optimizer.state_dict()["bnp"]["0"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * x[:1], rtol=SAME_STEP)
    assert torch.equal(other(x), expected)


def test_attention_and_other_modules_are_left_alone():
    """Fused attention does not call its layers; it trains as it did."""
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    optimizer = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.1), model)
    model(torch.randn(2, 3, 8)).square().sum().backward()
    plain = model.self_attn.out_proj.weight.grad.clone()
    optimizer.step()
    assert torch.equal(model.self_attn.out_proj.weight.grad, plain)
    assert set(optimizer.state_dict()["bnp"]) == {"linear1", "linear2"}
