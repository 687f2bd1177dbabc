"""How large a step is: what keeps it, and what scales it, in both packages.

A network is written down in another way that computes the same: other units of its inputs, another
zero, inputs more that say nothing. Then it makes one step, and what is compared is what it computes
afterwards. README.md has the table ("How large a step is"); what changes under the plain optimizer
shows that these tests can fail. With sigma absolute, r is a neuron's root mean square of it, so
that the default divides by sigma / r.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import torch

import jaxnorm
import torchnorm
from parity_tests import oracle
from parity_tests.oracle import Knobs
from parity_tests.tolerances import SAME_STEP, SAME_STEPS, VISIBLE, slice_error
from torchnorm.functional import neuronwise_linear

#: The rule that is exactly free of units: nothing is added to the variance. Muon, which mixes the
#: neurons of a layer, is where these have one scale.
KNOBS = {
    "sgd": Knobs(damping=0.0),
    "adam": Knobs(damping=0.0),
    "muon": Knobs(damping=0.0, scale="layer"),
}
RATE = 0.01
#: Adam and Muon divide by sizes of gradients plus this; larger, it would be a unit.
NOTHING = 1e-30
#: Of all inputs (a power of two: Muon in PyTorch, in bfloat16, sees the same digits), and of one.
ALL, ONE = 4.0, 7.0


class Net(NamedTuple):
    """Dense, SiLU, dense, and a batch for it; kernels [I, O]."""

    x: np.ndarray
    y: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    last: np.ndarray
    last_bias: np.ndarray

    def with_inputs(self, new: np.ndarray) -> Net:
        """With inputs more, all the same in every sample; their share of z is the bias's."""
        kernel = np.random.default_rng(2).standard_normal((len(new), self.kernel.shape[1]))
        x = np.concatenate([self.x, np.tile(new, (len(self.x), 1))], axis=1)
        together = np.concatenate([self.kernel, kernel])
        return self._replace(x=x, kernel=together, bias=self.bias - new @ kernel)

    def in_units(self, units: Any) -> Net:
        """With inputs in other units."""
        units = np.broadcast_to(units, len(self.kernel))
        return self._replace(x=self.x * units, kernel=self.kernel / units[:, None])


@cache
def network() -> Net:
    """Inputs of unlike scales, with means."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((24, 5)) + rng.uniform(-2, 2, 5)) * np.exp(rng.standard_normal(5))
    y = np.sin(x @ rng.standard_normal((5, 2)))
    kernels = (rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in ((5, 4), (4, 2)))
    first, last = kernels
    return Net(x, y, first / x.std(0)[:, None], rng.normal(size=4), last, rng.normal(size=2))


ANOTHER = {
    "every input in another unit": lambda net: net.in_units(ALL),
    "one input in another unit": lambda net: net.in_units(ONE ** (np.arange(5) == 2)),
    "another zero": lambda net: net._replace(
        x=net.x + np.arange(5.0), bias=net.bias - np.arange(5.0) @ net.kernel
    ),
    "inputs that are 0": lambda net: net.with_inputs(np.zeros(3)),
    "inputs that are constant": lambda net: net.with_inputs(np.array([3.7, -1.0])),
}
#: With what power of a kernel's gradient the step grows.
POWER = {"sgd": 2, "adam": 1, "muon": 1}
#: None is the plain optimizer.
SIZES = (None, "plain", "standardized")


def claim(another: str, size: str | None, optimizer: str) -> str:
    """The table: what another way to write the network down makes of a step.

    "scaled": every neuron's kernel by a factor of its own, and not in direction. "changed": in what
    the bias does; a constant input is a second bias. (Muon, which sees the kernel as one matrix,
    turns all of it.)
    """
    if another == "every input in another unit":
        return "nothing" if size == "standardized" else "scaled"
    if another == "one input in another unit":
        return {None: "turned", "plain": "scaled", "standardized": "nothing"}[size]
    if size is None:
        constant = "turned" if optimizer == "muon" else "changed"
        others = {"another zero": "turned", "inputs that are constant": constant}
        return others.get(another, "nothing")
    return "nothing"


def moments(net: Net, knobs: Knobs) -> oracle.Moments:
    """Of the first layer, by the oracle; sigma absolute."""
    s = oracle.sample_weight(net.x @ net.kernel + net.bias, net.x, "silu", "gate")
    return oracle.moments(net.x, s, knobs)


class Step(NamedTuple):
    """What one step does.

    Attributes:
        out: of the network, afterwards.
        moved: by how much the first layer's z differs more between one sample and the others, the
            kernel's share of the step; that of the bias is the same in all of them.
    """

    out: np.ndarray
    moved: np.ndarray


def step(framework: str, optimizer: str, size: str | None, net: Net) -> Step:
    """One, with the whole batch."""
    take = step_in_jax if framework == "jax" else step_in_torch
    kernel, bias, last, last_bias = take(optimizer, size, net)
    z = net.x @ kernel + bias
    moved = z - (net.x @ net.kernel + net.bias)
    return Step((z / (1 + np.exp(-z))) @ last + last_bias, moved - moved[:1])


def step_in_jax(optimizer: str, size: str | None, net: Net) -> list[np.ndarray]:
    """The parameters afterwards."""
    params = [{"kernel": k, "bias": b} for k, b in ((net.kernel, net.bias), net[4:])]
    after = compiled(optimizer, size)(jax.tree.map(jnp.asarray, params), net.x, net.y)
    return [np.asarray(layer[name]) for layer in after for name in ("kernel", "bias")]


@cache
def compiled(optimizer: str, size: str | None) -> Any:
    """(parameters, x, y) -> parameters after a step in JAX."""
    tx = {
        "sgd": optax.sgd(RATE),
        "adam": optax.adam(RATE, eps=NOTHING),
        "muon": optax.contrib.muon(RATE, eps=NOTHING, adam_eps_root=0.0, adam_weight_decay=0.0),
    }[optimizer]

    def of(params: Any, x: Any) -> Any:
        first, last = params
        z = x @ first["kernel"] + first["bias"][None]
        return jax.nn.silu(z) @ last["kernel"] + last["bias"][None]

    if size is not None:
        of = jaxnorm.neuronwise(of, rule=rule_of(jaxnorm, size, optimizer))
        tx = jaxnorm.in_neuron_coordinates(tx)

    @jax.jit
    def updated(params: Any, x: Any, y: Any) -> Any:
        def loss(params: Any, *stats: Any) -> Any:
            more = {"neuron_stats": stats[0]} if stats else {}
            return jnp.sum((of(params, x, **more) - y) ** 2) / 2

        if size is None:
            updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
        else:
            stats = jaxnorm.init_statistics(of, params, x)
            grads, batch = jax.grad(loss, (0, 1))(params, stats)
            stats = jaxnorm.update_statistics(stats, batch)
            updates, _ = tx.update(grads, tx.init(params), params, neuron_stats=stats)
        return optax.apply_updates(params, updates)

    return updated


def step_in_torch(optimizer: str, size: str | None, net: Net) -> list[np.ndarray]:
    """The parameters afterwards."""
    layers = [torch.nn.Linear(*k.shape, dtype=torch.float64) for k in (net.kernel, net.last)]
    for layer, (kernel, bias) in zip(layers, (net[2:4], net[4:]), strict=True):
        layer.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})
    model = torch.nn.Sequential(layers[0], torch.nn.SiLU(), layers[1])
    x = torch.tensor(net.x)
    biases = None
    if optimizer == "muon":
        weights = [layer.weight for layer in layers]
        inner: Any = torch.optim.Muon(weights, RATE, weight_decay=0.0, eps=NOTHING)
        biases = torch.optim.SGD([layer.bias for layer in layers], RATE)
    elif optimizer == "adam":
        inner = torch.optim.Adam(model.parameters(), RATE, eps=NOTHING)
    else:
        inner = torch.optim.SGD(model.parameters(), RATE)
    if size is not None:
        torchnorm.convert(model, x, rule=rule_of(torchnorm, size, optimizer))
        torchnorm.optim.in_neuron_coordinates(inner, model)
    (((model(x) - torch.tensor(net.y)) ** 2).sum() / 2).backward()
    inner.step()
    if biases is not None:
        biases.step()
    return [a.detach().numpy().T for layer in layers for a in (layer.weight, layer.bias)]


def rule_of(package: Any, size: str, optimizer: str) -> Any:
    """The package's rule."""
    knobs = KNOBS[optimizer]
    return package.Rule(damping=knobs.damping, scale=knobs.scale, step_size=size)


#: In PyTorch Muon takes matrices only, so that there is no mean to be free of, and in bfloat16: the
#: small singular values of a gradient are what roundings make of them.
def _combinations() -> list[Any]:
    return [
        (framework, optimizer, another)
        for framework in ("jax", "torch")
        for optimizer in POWER
        for another in ANOTHER
        if (framework, optimizer) != ("torch", "muon") or "every" in another
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("framework", "optimizer", "another"), _combinations())
def test_another_way_to_write_the_network_down(
    framework: str, optimizer: str, another: str, size: str | None
) -> None:
    """Nothing changes, or the kernel's step by one known factor, or in direction too."""
    if (framework, optimizer) == ("torch", "muon") and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch < 2.9")
    net = network()
    other = ANOTHER[another](net)
    one, two = (step(framework, optimizer, size, each) for each in (net, other))
    close, factor = 0.02 if (framework, optimizer) == ("torch", "muon") else SAME_STEPS, ALL
    if "one" in another:
        knobs = KNOBS[optimizer]
        roots = [oracle.unit(moments(each, knobs), knobs) for each in (other, net)]
        factor = roots[0] / roots[1]
    scaled = np.asarray(factor) ** POWER[optimizer] * one.moved
    match claim(another, size, optimizer):
        case "nothing":
            assert slice_error(two.out, one.out) <= close
            assert slice_error(two.moved, one.moved) <= close
        case "scaled":
            assert slice_error(two.moved, scaled) <= close
            assert slice_error(two.moved, one.moved) > 0.2
        case "turned":
            best = (one.moved * two.moved).sum() / (one.moved**2).sum() * one.moved
            assert slice_error(two.moved, best) > 0.1, "only scaled"
        case "changed":
            assert slice_error(two.moved, one.moved) <= close
            assert slice_error(two.out, one.out) > VISIBLE


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_unit_of_the_loss_is_the_optimizers_matter(
    framework: str, optimizer: str, size: str | None
) -> None:
    """A step of SGD has it, one of Adam does not: as plain, so in the coordinates."""
    net = network()
    # The loss of half of the errors, in a unit that is twice as large.
    loud = net._replace(last=2 * net.last, last_bias=2 * net.last_bias, y=2 * net.y)
    one, two = (step(framework, optimizer, size, each) for each in (net, loud))
    factor = 4.0 if optimizer == "sgd" else 1.0
    assert slice_error(two.moved, factor * one.moved) <= SAME_STEPS


# --- The size itself ------------------------------------------------------------------------------

#: Of two neurons behind which a ReLU comes.
KERNEL = np.stack([np.ones(5), [1.0, -1.0, 0.5, 1.0, -1.0]], axis=1)


def kernel_step(
    framework: str, x: np.ndarray, delta: np.ndarray, knobs: Knobs, kernel: np.ndarray = KERNEL
) -> np.ndarray:
    """Minus the step [I, O] of SGD with a rate of 1."""
    bias = np.zeros(kernel.shape[1])
    if framework == "jax":
        return np.asarray(compiled_gradient(knobs)(x, kernel, bias, delta))
    weight, offset = (torch.tensor(a.T, requires_grad=True) for a in (kernel, bias))
    rule = torchnorm.Rule(**vars(knobs))
    z = neuronwise_linear(torch.tensor(x), weight, offset, gate="relu", rule=rule)
    z.backward(torch.tensor(delta))
    assert weight.grad is not None
    return weight.grad.numpy().T


@cache
def compiled_gradient(knobs: Knobs) -> Any:
    """(x, kernel, bias, gradient at z) -> gradient at the kernel, in JAX."""
    rule = jaxnorm.Rule(**vars(knobs))

    @jax.jit
    def gradient(x: Any, kernel: Any, bias: Any, delta: Any) -> Any:
        def run(kernel: Any) -> Any:
            return jaxnorm.neuronwise_dense(x, kernel, bias, gate="relu", rule=rule)

        return jax.vjp(run, kernel)[1](delta)[0]

    return gradient


class Traces(NamedTuple):
    """What errors do to their own z, in the mean over the samples that a neuron counts, [O].

    Attributes:
        found: by the kernel's step.
        plain: by the plain one about the mean: the sum of the variances of the inputs.
    """

    found: np.ndarray
    plain: np.ndarray


def traces(framework: str, knobs: Knobs) -> Traces:
    """With one input that never changes."""
    x = network().x.copy()
    x[:, 3] = 1.3
    active = x @ KERNEL > 0
    found, plain = np.zeros(2), np.zeros(2)
    for o in range(2):
        rows = np.flatnonzero(active[:, o])
        assert 5 < len(rows) < len(x)
        mean, plain[o] = x[rows].mean(0), x[rows].var(0).sum()
        for n in rows:
            delta = np.zeros(active.shape)
            delta[n, o] = 1.0
            step = kernel_step(framework, x, delta, knobs)[:, o]
            found[o] += (x[n] - mean) @ step / len(rows)
    return Traces(found, plain)


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_step_is_as_large_as_the_plain_one_about_the_mean(framework: str) -> None:
    """For SGD: the trace of what errors do to z is the sum of the variances of a neuron's inputs.

    With v the variance of an input, a step of SGD moves z by v / sigma^2 for it; the sum of those
    is that of the v where sigma^2 = v / mean(v). Damped, it is at most that: v / (v + c) is concave
    in v. And sigma absolute leaves the number of the inputs that vary.
    """
    bare = Knobs(shrinkage=0.0, damping=0.0)
    found, plain = traces(framework, bare)
    assert np.abs(found / plain - 1).max() <= SAME_STEP
    found, plain = traces(framework, replace(bare, step_size="standardized"))
    assert np.abs(found / 4 - 1).max() <= SAME_STEP
    assert np.abs(plain / 4 - 1).min() > 0.1
    found, plain = traces(framework, replace(bare, damping=1.0))
    assert (found > 0.3 * plain).all()
    assert (found < (1 - VISIBLE) * plain).all()


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_steps_of_one_size_do_as_much_as_plain_ones(framework: str) -> None:
    """For Adam, whose first step is the rate for every weight: the same sum, of v / sigma^2.

    By what the step of each weight does to z about its mean, squared, in the mean over samples.
    """
    net = network()
    variance = moments(net, KNOBS["adam"]).sigma ** 2
    take = step_in_jax if framework == "jax" else step_in_torch
    ours, plain, standardized = (
        (variance * (take("adam", size, net)[0] - net.kernel) ** 2).sum(0)
        for size in ("plain", None, "standardized")
    )
    assert np.abs(ours / plain - 1).max() <= SAME_STEPS
    assert np.abs(standardized / (len(net.kernel) * RATE**2) - 1).max() <= SAME_STEPS
    assert np.abs(ours / standardized - 1).min() > 0.1


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("size", SIZES[1:])
def test_a_layer_that_is_split_by_its_neurons(framework: str, size: str) -> None:
    """Takes the same steps: into gates, heads, experts, shards."""
    x, knobs = network().x, Knobs(step_size=size)
    delta = np.random.default_rng(3).normal(size=(len(x), 2))
    whole = kernel_step(framework, x, delta, knobs)
    for o in (slice(0, 1), slice(1, 2)):
        part = kernel_step(framework, x, delta[:, o], knobs, KERNEL[:, o])
        assert slice_error(part, whole[:, o]) <= SAME_STEP
