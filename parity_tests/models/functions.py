"""Networks as functions of parameters, in `jaxnorm.neuronwise`: of linen, Equinox and Haiku."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm
from jaxnorm.conversion.report import Report, gate_name
from jaxnorm.optim.layers import stacked, statistics_in
from jaxnorm.statistics import merging
from parity_tests import oracle
from parity_tests.models.function_networks import FUNCTIONS
from parity_tests.models.jax import compiled, cotangent, linen_variables
from parity_tests.models.outcome import Network, Outcome
from parity_tests.tolerances import slice_error

#: These networks of linen, of different kinds.
OF_LINEN = ("ResNet", "Mixer", "GPT", "Policy", "actor and critic", "denoiser")
Loss = Callable[[Any, Any], Any]  # (parameters, statistics or None) -> the loss, the output


def of_linen(name: str) -> Outcome:
    """`model.apply` as a function; moments as `jaxnorm.linen` records them."""
    model, variables, x, kwargs = linen_variables(name)
    params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    known = jaxnorm.linen.find_gates(model, variables, x, **kwargs).once()
    run = jaxnorm.linen.neuronwise(model, known)

    def fn(params: Any, x: Any) -> Any:
        return model.apply({"params": params, **state}, x, **kwargs)

    def modules(params: Any, stats: Any) -> Any:
        return run({"params": params, **state, "neuron_stats": stats}, x, **kwargs)

    stats = jaxnorm.linen.init_statistics(run, variables, x, **kwargs)
    recorded = statistics_in(_recorded(_gradients(modules), params, stats)[1])
    gates = {f"{row.layer}/kernel": row for row in known.converted if not row.unresolved}
    moments = {"/".join((*path, "kernel")): _moments(each) for path, each in recorded.items()}

    def expected(report: Report) -> dict[str, Any]:
        # Where both see the same activation: in a loop, or behind a sum, a function knows more.
        rows = [row for row in report.converted if row.layer in gates]
        same = [r.layer for r in rows if _base(r.gate) == _base(gates[r.layer].gate)]
        return {name: moments[name] for name in same if name in moments}

    return _measure(name, fn, params, x, expected)


def by_hand(name: str) -> Outcome:
    """A network of Equinox or Haiku; moments by the oracle."""
    params, fn, look, x = FUNCTIONS[name].make()

    def expected(_: Report) -> dict[str, Any]:
        return {layer: _by_oracle(*each) for layer, each in look(params, x).items()}

    return _measure(name, fn, params, x, expected)


def _measure(
    name: str, fn: Any, params: Any, x: Any, expected: Callable[[Report], dict[str, Any]]
) -> Outcome:
    """Outputs and gradients bit for bit, the recorded moments, a step."""
    outcome = Outcome(name, "function", jaxnorm.find_gates(fn, params, x))
    run = jaxnorm.neuronwise(fn)
    stats = jaxnorm.init_statistics(run, params, x)
    plain = _gradients(lambda params, _: fn(params, x))(params, {})
    found, recorded = _recorded(
        _gradients(lambda params, stats: run(params, x, neuron_stats=stats)), params, stats
    )
    if not _equal(found[0], plain[0]):
        outcome.unequal.append("the outputs")
    if not _equal(found[1][0], plain[1][0]):
        outcome.unequal.append("the gradients")
    wanted = expected(outcome.report)
    for row in outcome.report.converted:
        if row.layer not in wanted:
            outcome.unclear.append(row.layer)
            continue
        right, spread = wanted[row.layer]
        found_there = _moments(recorded[row.layer])  # of all neurons, where theirs are the same
        mean, sigma = (np.broadcast_to(each, right.shape) for each in found_there)
        if np.any(right):  # a place: beside the spread around it
            error = slice_error(mean, right, axes=(1,), unit=spread)
            outcome.errors[f"{row.layer}, mean"] = error
        outcome.errors[f"{row.layer}, sigma"] = slice_error(sigma, spread, axes=(1,))
    if not _step_is_finite(params, found[1][0], recorded):
        outcome.unequal.append("finite numbers after a step")
    return outcome


def _gradients(apply: Loss) -> Any:
    """(parameters, statistics) -> what is returned, gradients by both."""

    def loss(params: Any, stats: Any) -> Any:
        out = apply(params, stats)
        first = jax.tree.leaves(out)[0]
        return jnp.sum(first * cotangent(first.shape)), out

    gradient = compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))

    def run(params: Any, stats: Any) -> Any:
        (_, out), grads = gradient(params, stats)
        return out, grads

    return run


def _recorded(gradients: Any, params: Any, stats: Any) -> Any:
    """What it returns, and what it records once the sums have a place that they are about."""
    _, (_, first) = gradients(params, stats)
    found = gradients(params, jaxnorm.update_statistics(stats, first))
    return found, found[1][1]


def _moments(statistics: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sigma, [I, O], or [I, 1] where all neurons have the same."""
    found = stacked(merging.moments, statistics)(statistics)
    mean, sigma = np.broadcast_arrays(found.mean, found.sigma)
    return mean.reshape(-1, mean.shape[-1]), sigma.reshape(-1, sigma.shape[-1])


def _by_oracle(x: Any, slope: Any, bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """The same of samples [..., I] and slopes [..., O]."""
    rows, weights = (np.asarray(a).reshape(-1, a.shape[-1]) for a in (x, jnp.abs(slope)))
    knobs = oracle.Knobs()
    at = oracle.moments(rows, weights, knobs, centered=bias)
    return at.mean, at.sigma / oracle.unit(at, knobs)


def _base(gate: Any) -> str:
    """The activation, wherever it is."""
    return gate_name(getattr(gate, "gate", gate))


def _equal(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def _step_is_finite(params: Any, grads: Any, stats: Any) -> bool:
    tx = jaxnorm.in_neuron_coordinates(optax.sgd(1e-2))

    @compiled
    def step(params: Any, grads: Any, stats: Any) -> Any:
        updates, _ = tx.update(grads, tx.init(params), params, neuron_stats=stats)
        return optax.apply_updates(params, updates)

    new = jax.tree.leaves(step(params, grads, stats))
    return all(np.isfinite(a).all() for a in new)


def networks() -> Iterator[Network]:
    """All of them, as the command takes them."""
    for name in OF_LINEN:
        yield Network(name, "function", partial(_timed, of_linen, name))
    for name, each in FUNCTIONS.items():
        yield Network(name, "function", partial(_timed, by_hand, name), each.needs)


def _timed(measure: Callable[[str], Outcome], name: str) -> Outcome:
    start = time.perf_counter()
    with jax.numpy_rank_promotion("allow"):  # as the libraries write it
        result = measure(name)
    result.seconds = time.perf_counter() - start
    return result
