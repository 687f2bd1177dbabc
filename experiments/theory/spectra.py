"""Curvature of networks while they train: in plain, layer-wide and neuron-wise coordinates.

The network is trained plainly, with Adam; at some steps its Hessian and Gauss-Newton matrix are
looked at in several coordinates, which change nothing in it. BatchNorm is another network, which is
trained beside it from the same weights.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm
from experiments.methods import METHODS
from experiments.networks.mlp import MLP
from experiments.workloads import Workload
from jaxnorm import analysis

#: Rate of Adam: plain's best in `compare --optimizer adam`, to half a decade.
RATE = 3e-3
#: Samples on which the curvature is that of the mean loss.
SAMPLES = 512
BATCH = 128
#: Of Lanczos, and from how many starts.
LANCZOS, PROBES = 40, 3

#: What the curvature of the plain network is looked at in: name -> rule, None for the parameters.
COORDINATES: dict[str, jaxnorm.Rule | None] = {
    "plain": None,
    "bnp": jaxnorm.BNP,
    "neuronwise": jaxnorm.NEURONWISE,
}


class Curvature(NamedTuple):
    """What was found at one step in some coordinates.

    Attributes:
        workload: its name.
        step: how many steps were made before.
        coordinates: plain, bnp, neuronwise; batchnorm: the parameters of that network.
        hessian: largest eigenvalue of the Hessian.
        largest: of the Gauss-Newton matrix.
        ratio: largest over mean eigenvalue of that.
        blocks: the same of the neurons' own blocks, the median of each hidden layer: inputs that
            do not vary have no condition number. Empty for BatchNorm.
        density: eigenvalues of the Gauss-Newton matrix over the largest, with their weights.
    """

    workload: str
    step: int
    coordinates: str
    hessian: float
    largest: float
    ratio: float
    blocks: tuple[float, ...]
    density: tuple[np.ndarray, np.ndarray]


def measure(
    workload: Workload, steps: tuple[int, ...], width: int, depth: int
) -> Iterator[Curvature]:
    """Train, and look at every one of some steps.

    Args:
        workload: data and loss.
        steps: when; ascending.
        width: of the hidden layers.
        depth: how many.
    """
    order = workload.batches(0, max(*steps, 1), BATCH)
    chosen = np.random.default_rng(0).permutation(len(workload.train))[:SAMPLES]
    inputs, targets = (jnp.asarray(a[chosen]) for a in _arrays(workload))
    for method in ("plain", "batchnorm"):
        network = METHODS[method].network(width=width, depth=depth, outputs=workload.outputs)
        for step, params in _trained(network, workload, order, steps):
            seen = _Seen(workload, network, params, inputs, targets)
            names = COORDINATES if method == "plain" else {"batchnorm": None}
            for name, rule in names.items():
                yield seen.look(step, name, rule)


def _arrays(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    return workload.train.inputs, workload.train.targets


def _trained(
    network: MLP, workload: Workload, order: np.ndarray, steps: tuple[int, ...]
) -> Iterator[tuple[int, Any]]:
    """(step, parameters) at each of the steps."""
    inputs, targets = map(jnp.asarray, _arrays(workload))
    variables = network.init(jax.random.key(0), inputs[:2], train=True)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    tx = optax.adam(RATE)

    @jax.jit
    def advance(params: Any, state: Any, indices: Any) -> Any:
        def step(carry: Any, index: Any) -> Any:
            params, state = carry

            def loss(params: Any) -> Any:
                outputs = _outputs(network, params, rest, inputs[index])
                return workload.loss(outputs, targets[index])

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), indices)[0]

    state, done = tx.init(params), 0
    for step in steps:
        if step > done:
            params, state = advance(params, state, order[done:step])
        done = step
        yield step, params


def _outputs(network: MLP, params: Any, rest: Any, x: Any) -> Any:
    """In training, so with the statistics of this very batch, whose running ones do not matter."""
    return network.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])[0]


class _Seen:
    """One network at one step.

    Args:
        workload: of the loss.
        network: the network.
        params: its parameters.
        inputs: of the samples of the loss.
        targets: likewise.
    """

    def __init__(
        self, workload: Workload, network: MLP, params: Any, inputs: Any, targets: Any
    ) -> None:
        self.workload, self.network, self.params = workload, network, params
        self.inputs, self.targets = inputs, targets
        variables = network.init(jax.random.key(0), inputs[:2], train=True)
        self.rest = {k: v for k, v in variables.items() if k != "params"}

    def model(self, params: Any) -> Any:
        """Parameters -> outputs."""
        return _outputs(self.network, params, self.rest, self.inputs)

    def loss(self, outputs: Any) -> Any:
        """Outputs -> loss."""
        return self.workload.loss(outputs, self.targets)

    def look(self, step: int, name: str, rule: jaxnorm.Rule | None) -> Curvature:
        """The curvature in the coordinates of a rule, or in the parameters."""
        hessian = analysis.hessian_product(lambda p: self.loss(self.model(p)), self.params)
        gauss_newton = analysis.gauss_newton_product(self.model, self.loss, self.params)
        moments = None
        if rule is not None:
            statistics = self.statistics(rule)
            hessian, gauss_newton = (
                analysis.in_coordinates(each, statistics, self.params)
                for each in (hessian, gauss_newton)
            )
            moments = rule
        top = analysis.lanczos(hessian, self.params, LANCZOS)
        density = analysis.spectral_density(gauss_newton, self.params, LANCZOS, probes=PROBES)
        largest, mean = density.largest, density.moment(1)
        blocks = () if name == "batchnorm" else self.blocks(moments)
        shown = density.values / largest, density.weights
        return Curvature(
            self.workload.name, step, name, top.largest, largest, largest / mean, blocks, shown
        )

    def statistics(self, rule: jaxnorm.Rule) -> Any:
        """Those of the samples, of all layers."""
        network = self.network.clone(rule=rule)
        variables = {"params": self.params}
        before = jaxnorm.linen.init_statistics(network, variables, self.inputs, train=True)

        def loss(statistics: Any) -> Any:
            given = {**variables, "neuron_stats": statistics}
            return self.loss(network.apply(given, self.inputs, train=True))

        return jaxnorm.update_statistics(before, jax.grad(loss)(before))

    def blocks(self, rule: jaxnorm.Rule | None) -> tuple[float, ...]:
        """Of each hidden layer, the median over its neurons of largest over mean eigenvalue."""
        medians, x = [], self.inputs
        for index in range(self.network.depth):
            layer = self.params[f"hidden_{index}"]
            z = x @ layer["kernel"] + layer["bias"]
            gate = (z > 0).astype(x.dtype)
            at = (None, None)
            if rule is not None:
                s = jnp.ones_like(gate) if rule.weighting == "uniform" else gate
                at = jaxnorm.neuron_moments(x, s, rule)
            values = np.asarray(jnp.linalg.eigvalsh(analysis.neuron_blocks(x, gate, *at)))
            alive = values[values[:, -1] > 0]
            medians.append(float(np.median(alive[:, -1] / alive.mean(1))))
            x = jax.nn.relu(z)
        return tuple(medians)
