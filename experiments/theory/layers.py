"""How well conditioned the neurons of each layer of a task are, and what the rule can mend.

The network is trained plainly, with Adam; at some steps the inputs of each linear layer are looked
at, those of a convolution patch by patch.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm
from experiments.studies.tasks import TASKS, Task
from experiments.theory.spectra import COORDINATES
from experiments.training.trainer import Knobs, Trainer
from experiments.workloads import Workload
from jaxnorm import activations, analysis

#: Of Adam, at which every task learns.
RATE, BATCH = 1e-3, 64
#: At most so many of each are looked at.
SAMPLES, ROWS, NEURONS = 256, 1024, 16


class Layer(NamedTuple):
    """A linear layer after some steps.

    Attributes:
        task: its name.
        step: how many steps were made before.
        name: the layer's.
        inputs: how many inputs that vary it has.
        ratios: coordinates -> largest eigenvalue of a neuron's Gauss-Newton block over the mean of
            those that are not 0, the median over neurons; 1 is best.
    """

    task: str
    step: int
    name: str
    inputs: int
    ratios: dict[str, float]


def look(name: str, workload: Workload, steps: tuple[int, ...]) -> Iterator[Layer]:
    """Train the network of a task, and look at all of its layers after some steps.

    Args:
        name: of the task.
        workload: its data.
        steps: when.
    """
    task = TASKS[name]
    chosen = np.random.default_rng(0).permutation(len(workload.train))[:SAMPLES]
    inputs = jnp.asarray(workload.train.inputs[chosen])
    for step in steps:
        params = _trained(task, workload, step)
        for layer, (rows, z, gate) in inputs_of(task, workload.outputs, params, inputs).items():
            ratios = {
                coordinates: ratio(rows, z, gate, rule) for coordinates, rule in COORDINATES.items()
            }
            varying = int((np.ptp(rows, axis=0) > 0).sum())
            yield Layer(name, step, layer, varying, ratios)


def _trained(task: Task, workload: Workload, steps: int) -> Any:
    network = task.network(None, workload.outputs)
    if not steps:
        return network.init(jax.random.key(0), workload.train.inputs[:2], train=True)["params"]
    trained = Trainer(network, workload, optax.adam, 1, steps, BATCH)(Knobs([RATE]))
    return jax.tree.map(lambda leaf: leaf[0, 0], trained.variables["params"])


def inputs_of(task: Task, outputs: int, params: Any, inputs: Any) -> dict[str, Any]:
    """Layer -> (rows of its inputs [N, I], its outputs [N, O], gate), for some samples."""
    network, found = task.network(jaxnorm.NEURONWISE, outputs), {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out, module = call(*args, **kwargs), context.module
        if context.method_name == "__call__" and isinstance(module, nn.Dense | nn.Conv):
            rows = _patches(module, args[0])
            keep = np.random.default_rng(0).permutation(len(rows))[:ROWS]
            z = np.asarray(out).reshape(len(rows), -1)[keep, :NEURONS]
            found[module.name] = np.asarray(rows)[keep], z, module.gate
        return out

    with nn.intercept_methods(record):
        network.apply({"params": params}, inputs, train=True)
    return found


def _patches(module: Any, x: jax.Array) -> jax.Array:
    """The rows that a layer multiplies with its matrix."""
    if isinstance(module, nn.Dense):
        return x.reshape(-1, x.shape[-1])
    strides = np.broadcast_to(module.strides or 1, len(module.kernel_size)).tolist()
    order = ("NHWC", "HWIO", "NHWC")
    rows = jax.lax.conv_general_dilated_patches(
        x, module.kernel_size, strides, "SAME", dimension_numbers=order
    )
    return rows.reshape(-1, rows.shape[-1])


def ratio(rows: np.ndarray, z: np.ndarray, gate: Any, rule: jaxnorm.Rule | None) -> float:
    """Largest over mean eigenvalue of the neurons' blocks, in the coordinates of a rule."""
    x, outputs = jnp.asarray(rows, jnp.float64), jnp.asarray(z, jnp.float64)
    slope = jnp.ones_like(outputs) if gate is None else activations.gate_slope(gate, outputs)
    assert slope is not None
    at = (None, None)
    if rule is not None:
        s = jnp.ones_like(outputs) if rule.weighting == "uniform" else jnp.abs(slope)
        at = jaxnorm.neuron_moments(x, s, rule)
    values = np.asarray(jnp.linalg.eigvalsh(analysis.neuron_blocks(x, slope**2, *at)))
    values = values[values[:, -1] > 0]
    there = values > 1e-12 * values[:, -1:]
    means = np.where(there, values, 0).sum(1) / there.sum(1)
    return float(np.median(values[:, -1] / means))
