"""A batch in pieces: statistics are shared as sums, and then the pieces add up to the whole."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

import jaxnorm
from parity_tests import cases, weights
from parity_tests.cases import Case
from parity_tests.implementations import Gradients, JaxFunctional, TorchFunctional
from parity_tests.oracle import Knobs
from parity_tests.tolerances import GATE, VISIBLE, slice_error

SHARDS = 2
WEIGHTINGS = pytest.mark.parametrize("weighting", ["gate", "error"])


def _case(weighting: str) -> Case:
    """A case whose batch divides evenly."""
    return cases.make(gate="silu", seed=8, knobs=Knobs(weighting=weighting))


def _shard(case: Case, rank: int) -> Case:
    """Every row of the batch belongs to one shard."""
    rows = len(case.x) // SHARDS
    piece = slice(rank * rows, (rank + 1) * rows)
    return replace(case, x=case.x[piece], delta=case.delta[piece])


def _assert_whole(kernel: np.ndarray, bias: np.ndarray, case: Case) -> None:
    """The sum over shards is the gradient of the whole batch."""
    assert slice_error(kernel, case.expected.g_kernel, axes=(0, 1)) <= GATE["float64"]
    assert slice_error(bias, case.expected.g_bias, axes=()) <= GATE["float64"]


@WEIGHTINGS
def test_jax_shards_share_their_sums(weighting: str) -> None:
    """With `axis_name` the sum over shards is the gradient of the whole batch."""
    case = _case(weighting)
    kernel, bias = jnp.asarray(case.kernel), jnp.asarray(case.bias)
    layer = partial(
        jaxnorm.neuronwise_dense,
        gate=case.gate,
        rule=jaxnorm.Rule(**asdict(case.knobs)),
        axis_name="shards",
    )

    def gradients(x: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(partial(layer, x), kernel, bias)[1](delta)

    x, delta = (jnp.reshape(a, (SHARDS, -1, a.shape[-1])) for a in (case.x, case.delta))
    g_kernel, g_bias = jax.vmap(gradients, axis_name="shards")(x, delta)
    _assert_whole(np.sum(g_kernel, axis=0), np.sum(g_bias, axis=0), case)


def _worker(rank: int, folder: str, weighting: str) -> None:
    """One of the processes: its shard, the shared statistics, its part of the gradient."""
    from torch import distributed

    from torchnorm import Rule
    from torchnorm.functional import neuronwise_linear

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SHARDS
    )
    case = _case(weighting)
    shard, (inputs, outputs) = _shard(case, rank), case.kernel.shape
    weight = torch.tensor(weights.to_torch(case.kernel, inputs=inputs, outputs=outputs))
    bias = torch.tensor(case.bias, requires_grad=True)
    weight.requires_grad_()
    group = distributed.group.WORLD
    rule = Rule(**asdict(case.knobs))
    z = neuronwise_linear(
        torch.tensor(shard.x), weight, bias, gate=case.gate, rule=rule, process_group=group
    )
    z.backward(torch.tensor(shard.delta))
    g_weight, g_bias = (np.asarray(parameter.grad) for parameter in (weight, bias))
    np.savez(f"{folder}/{rank}.npz", weight=g_weight, bias=g_bias)
    distributed.destroy_process_group()


@WEIGHTINGS
def test_torch_processes_share_their_sums(weighting: str, tmp_path: Path) -> None:
    """With `process_group` the sum over processes is the gradient of the whole batch."""
    spawn(_worker, (str(tmp_path), weighting), nprocs=SHARDS)
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(SHARDS)]
    case = _case(weighting)
    inputs, outputs = case.kernel.shape
    weight, bias = (np.sum([p[name] for p in parts], axis=0) for name in ("weight", "bias"))
    _assert_whole(weights.to_flax(weight, inputs=inputs, outputs=outputs), bias, case)


@pytest.mark.parametrize("kind", [JaxFunctional, TorchFunctional])
def test_gradients_of_shards_do_not_add_up(kind: type[JaxFunctional | TorchFunctional]) -> None:
    """Why sums are shared: adapted gradients of the pieces are those of other statistics."""
    case = _case("gate")
    pieces: list[Gradients] = [kind().gradients(_shard(case, rank)) for rank in range(SHARDS)]
    total = sum(piece.g_kernel for piece in pieces)
    assert slice_error(total, case.expected.g_kernel) > VISIBLE
