"""Runs that differ in the rate and in a few numbers more: trained together, the best rate sought.

Letters: K runs that are trained together, S seeds, T steps, B samples in a minibatch.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm
from experiments.workloads import WORKLOADS, Workload

PER_DECADE = 4
"""Rates in a decade: a best rate is known to within a factor 10^(1/8) = 1.33."""

MOMENTUM = 0.9
SIDE = 28
"""Of a Fashion-MNIST image."""


@dataclass(frozen=True)
class Task:
    """A workload and the network that learns it.

    Attributes:
        title: as in tables and plots.
        workload: its name.
        inputs: of the network.
        channels: of the convolutions (3x3, stride 2) before the dense layers.
        widths: of the hidden dense layers.
    """

    title: str
    workload: str
    inputs: int
    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()

    def load(self, data_dir: Path | None = None) -> Workload:
        """The data."""
        return WORKLOADS[self.workload].load(data_dir)

    def network(self, rule: jaxnorm.Rule, outputs: int) -> "Network":
        """The network, its layers under a rule."""
        return Network(rule, self.channels, self.widths, outputs)


TASKS = {
    "photo": Task("photograph, 3 x 128", "photo", 2, widths=(128, 128, 128)),
    "mlp": Task("Fashion-MNIST, 3 x 128", "fashion_mnist", 784, widths=(128, 128, 128)),
    "convnet": Task("Fashion-MNIST, conv 8, 16", "fashion_mnist", 784, channels=(8, 16)),
}


class Network(nn.Module):
    """Convolutions, dense layers and ReLUs; all linear layers under one rule."""

    rule: jaxnorm.Rule
    channels: tuple[int, ...]
    widths: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map inputs [N, I] to outputs [N, O]."""
        if self.channels:
            # Means of 2x2 pixels: a quarter of the work.
            x = x.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean((2, 4))[..., None]
        for width in self.channels:
            layer = jaxnorm.linen.Conv(
                width,
                (3, 3),
                strides=2,
                gate="relu",
                rule=self.rule,
                conv_general_dilated=patch_convolution,
            )
            x = nn.relu(layer(x))
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(jaxnorm.linen.Dense(width, gate="relu", rule=self.rule)(x))
        return jaxnorm.linen.Dense(self.outputs, gate=None, rule=self.rule)(x)


def patch_convolution(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated` for 3x3 kernels with stride 2 and zero padding "SAME".

    As one product with all patches: under `jax.vmap` over kernels XLA's own convolution is many
    times slower on a CPU.
    """
    del args, kwargs  # the stride and padding that `Network` asks for
    height, width, _, _ = kernel.shape
    rows, columns = x.shape[1:3]
    # "SAME": a row of zeros after the last one, and before the first one if the side is odd.
    x = jnp.pad(x, ((0, 0), (rows % 2, 1), (columns % 2, 1), (0, 0)))
    taps = [
        x[:, i : i + rows : 2, j : j + columns : 2] for i in range(height) for j in range(width)
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


@dataclass(frozen=True)
class Setting:
    """What a group of runs has in common.

    Attributes:
        workload: data and loss.
        network: under the rule.
        batch_size: samples in a step.
        steps: of a run.
        inner: makes the optimizer from a rate.
        judged: the final loss is that of so many training samples, always the same (0: the mean
            minibatch loss of the last seventh of the steps).
    """

    workload: Workload
    network: Network
    batch_size: int
    steps: int
    inner: Callable[[Any], optax.GradientTransformation]
    judged: int = 0

    def orders(self, seeds: int) -> jax.Array:
        """Indices of the minibatches [S, T, B]."""
        orders = [self.workload.batches(s, self.steps, self.batch_size) for s in range(seeds)]
        return jnp.asarray(np.stack(orders))


def trainer(setting: Setting, seeds: int) -> Callable[..., np.ndarray]:
    """A compiled function that trains K runs, each with all seeds.

    Returns:
        ``train(rates [K], decays [K] = 0, taken [K, T] = 1, divisors [K, L, 2] = (0, 1))`` ->
        final losses [K, S], inf for a run that diverged or ended above its first loss. The rest is
        for networks with recorded gradients: `taken` says in which steps statistics are taken;
        with ``(c, f)`` a step of the layer is divided by ``c + f d`` instead of the ``d`` that its
        statistics hold.
    """
    workload, orders = setting.workload, setting.orders(seeds)
    data = tuple(jnp.asarray(a) for a in (workload.train.inputs, workload.train.targets))
    model = setting.network
    tracked = model.rule.gradient in (None, "plain_with_statistics")
    layers = len(model.channels) + len(model.widths) + 1

    def run(rate, decay, taken, divisors, seed, order):
        net = model.clone(rule=_with_decay(model.rule, decay)) if tracked else model
        tx = setting.inner(rate)
        if tracked:
            tx = jaxnorm.in_neuron_coordinates(tx)
        x = data[0][:2]
        params = net.init(jax.random.key(seed), x)["params"]
        stats = jaxnorm.linen.init_statistics(net, {"params": params}, x) if tracked else {}

        def loss(params, stats, inputs, targets):
            variables = {"params": params, "neuron_stats": stats} if tracked else {"params": params}
            outputs: Any = net.apply(variables, inputs)
            return workload.loss(outputs, targets)

        def step(carry, now):
            params, stats, memory = carry
            row, take = now
            batch = (jnp.take(samples, row, axis=0) for samples in data)
            value, (grads, new) = jax.value_and_grad(loss, (0, 1))(params, stats, *batch)
            extra = {}
            if tracked:
                new = {
                    name: layer | {"divisor": c + f * layer["divisor"]}
                    for (name, layer), (c, f) in zip(sorted(new.items()), divisors, strict=True)
                }
                new = jax.tree.map(lambda a: jnp.where(take, a, 0), new)
                stats = jaxnorm.update_statistics(stats, new)
                extra = {"neuron_stats": stats}
            updates, memory = tx.update(grads, memory, params, **extra)
            return (optax.apply_updates(params, updates), stats, memory), value

        state = (params, stats, tx.init(params))
        (params, stats, _), losses = jax.lax.scan(step, state, (order, taken))
        if setting.judged:
            final = loss(params, stats, *(samples[: setting.judged] for samples in data))
        else:
            final = jnp.mean(losses[-max(1, setting.steps // 7) :])
        fine = jnp.all(jnp.isfinite(losses)) & jnp.isfinite(final)
        first = jnp.mean(losses[: max(1, 128 // setting.batch_size)])
        return jnp.where(fine & (final < first), final, jnp.inf)

    over_seeds = jax.vmap(run, in_axes=(None, None, None, None, 0, 0))
    together = jax.jit(jax.vmap(over_seeds, in_axes=(0, 0, 0, 0, None, None)))

    def train(rates, decays=None, taken=None, divisors=None):
        count = len(rates)
        decays = np.zeros(count) if decays is None else decays
        taken = np.ones((count, setting.steps), bool) if taken is None else taken
        divisors = np.tile([0.0, 1.0], (count, layers, 1)) if divisors is None else divisors
        rates, decays, divisors = (jnp.asarray(a, jnp.float32) for a in (rates, decays, divisors))
        taken = jnp.asarray(taken)
        return np.asarray(together(rates, decays, taken, divisors, jnp.arange(seeds), orders))

    return train


def sgd(rate: Any) -> optax.GradientTransformation:
    """SGD with momentum."""
    return optax.sgd(rate, momentum=MOMENTUM)


def rate_of(index: float) -> float:
    """A rate of the log grid; of a fraction, one between."""
    return 10 ** (index / PER_DECADE)


def index_of(rate: float) -> int:
    """The nearest rate of the log grid."""
    return round(PER_DECADE * math.log10(rate))


Finals = dict[int, list[float]]
"""Index of a rate -> final loss of each seed; inf for one that diverged."""


def search(
    train: Callable[[list[float]], np.ndarray],
    guess: float,
    portion: int = 6,
    stride: int = 1,
    most: int = 60,
) -> Finals:
    """Try rates around a guess until the best has two neighbors on either side, or diverged ones.

    Args:
        train: rates [portion] -> final losses [portion, S].
        guess: a rate.
        portion: how many rates are tried at once.
        stride: of the rates on the log grid; with more than 1 a single neighbor is enough.
        most: rates that are tried at most.
    """
    middle = index_of(guess)
    first, width = middle - portion // 2 * stride, portion * stride
    indices = list(range(first, first + width, stride))
    inside = 2 if stride == 1 else stride
    finals: Finals = {}
    while len(finals) < most:
        losses = train([rate_of(index) for index in indices])
        finals |= {i: [float(v) for v in row] for i, row in zip(indices, losses, strict=True)}
        low, high, best = min(finals), max(finals), best_index(finals)
        if best is None or best < low + inside:
            indices = list(range(low - width, low, stride))
        elif best > high - inside and math.isfinite(mean_loss(finals, high)):
            indices = list(range(high + stride, high + stride + width, stride))
        else:
            break
    return dict(sorted(finals.items()))


def mean_loss(finals: Finals, index: int) -> float:
    """Mean over the seeds at a rate; inf where one diverged, or where it was not tried."""
    return float(np.mean(finals.get(index, [math.inf])))


def best_index(finals: Finals) -> int | None:
    """The rate with the smallest mean final loss; None if all diverged."""
    best = min(finals, key=lambda index: mean_loss(finals, index))
    return best if math.isfinite(mean_loss(finals, best)) else None


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column is of words, the others of numbers."""
    headings = list(headings)
    lines = [headings, [":--", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _with_decay(rule: jaxnorm.Rule, decay: Any) -> jaxnorm.Rule:
    leaves, structure = jax.tree.flatten(rule)
    return jax.tree.unflatten(structure, [*leaves[:-1], decay])
