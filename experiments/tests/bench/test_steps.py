"""The timed networks are twins, and steps are what they are called."""

import contextlib
import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from experiments.bench import networks_jax, networks_torch, schedule, steps_jax, steps_torch
from experiments.bench.methods import METHODS, Method
from experiments.bench.networks import NETWORKS, Network
from experiments.bench.problems import why_left_out
from experiments.bench.steps_torch import CompiledStep, GraphStep, TorchStep

TINY = {
    "mlp": Network("mlp", 6, 8),
    "transformer": Network("transformer", 2, 8, 3),
    "resnet": Network("resnet", 2, 4, 5),
}
RARE = Method("rare", rule={"statistics_every": 16})


def make(framework: str, network: Network, method: Method, dtype: str = "float32"):
    if framework.startswith("jax"):
        return steps_jax.CLASSES[framework](network, method, jax.devices()[0], dtype)
    return TorchStep(network, method, torch.device("cpu"), dtype)


@pytest.mark.parametrize("normalizer", [None, "batchnorm", "layernorm"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_both_frameworks_have_the_same_parameters(name, normalizer) -> None:
    """As many, of the same sizes, and the same output."""
    network = NETWORKS[name]
    module = networks_jax.build(network, normalizer, "float32")
    x = jax.ShapeDtypeStruct(network.input_shape, jnp.float32)
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    with torch.device("meta"):
        twin = networks_torch.build(network, normalizer)
        found = twin(torch.empty(networks_torch.inputs_of(network)))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sizes == sorted(p.numel() for p in twin.parameters())
    assert output.shape == tuple(found.shape) == network.output_shape


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("kind", sorted(TINY))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_learns(framework, kind, dtype) -> None:
    """Parameters move in both precisions, and stay float32."""
    step = make(framework, TINY[kind], METHODS["batchnorm"], dtype)

    def parameters() -> list[np.ndarray]:
        if framework == "jax":
            return [np.array(leaf) for leaf in jax.tree.leaves(step._state.params)]
        return [p.detach().numpy().copy() for p in step.model.parameters()]

    before = parameters()
    step()
    step.wait()
    after = parameters()
    assert any(np.any(a != b) for a, b in zip(before, after, strict=True))
    assert {a.dtype.name for a in after} == {"float32"}


def test_statistics_are_taken_in_the_steps_that_are_said_to_have_them() -> None:
    """Counted in PyTorch; in both by the age that the statistics have after some steps."""
    step = make("torch", TINY["mlp"], RARE)
    counts = step.count().parts
    assert set(counts) == {schedule.WITH, schedule.WITHOUT}
    assert counts[schedule.WITH].flops > counts[schedule.WITHOUT].flops
    assert counts[schedule.WITH].operators > counts[schedule.WITHOUT].operators
    plain = make("torch", TINY["mlp"], METHODS["plain"]).count().parts["step"]
    assert counts[schedule.WITHOUT].flops == plain.flops
    compiled, two = (make(name, TINY["mlp"], RARE) for name in ("jax", "jax-two-programs"))
    assert set(two.count().parts) == {schedule.WITH, schedule.WITHOUT}
    programs = compiled._program, *two._programs.values()
    branches = [program.as_text().count(" conditional(") for program in programs]
    assert branches[0] > max(branches[1:])  # what it is told it need not find out

    def counted_jax(step) -> set[tuple[int, int]]:
        stats = step._state.neuron_stats
        found = jax.tree.leaves(stats, is_leaf=lambda n: hasattr(n, "parts"))
        return {(int(each.steps), int(each.age)) for each in found}

    def counted_torch() -> set[tuple[int, int]]:
        return {(stats.count, stats.age) for stats in step._statistics()}

    for part, times, age in (
        (schedule.WITH, 1, 1),
        (schedule.WITH, 2, 2),
        (schedule.WITHOUT, 15, 16),
        (schedule.WITHOUT, 16, 1),
    ):
        for each, counted in (
            (step, counted_torch),
            (compiled, partial(counted_jax, compiled)),
            (two, partial(counted_jax, two)),
        ):
            if each is two and times > schedule.in_a_row(part, 16, times):
                continue  # its program does not find out that the part is over
            each.go_to(part)
            for _ in range(times):
                each()
            assert counted() == {(schedule.LATE + times, age)}
    assert schedule.in_a_row(schedule.WITHOUT, 16, 99) == 15


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_state_is_parameters_and_what_the_optimizer_has(framework) -> None:
    """Adam: three times the parameters."""
    step = make(framework, TINY["mlp"], METHODS["plain"])
    parameters = sum(p.numel() for p in networks_torch.build(TINY["mlp"], None).parameters())
    assert step.count().state_bytes == 3 * 4 * parameters


@pytest.mark.parametrize("per_step", [0, 1])
def test_an_optimizer_that_compiles_in_every_step_stays_eager(per_step, monkeypatch) -> None:
    """And the cell says so."""
    compiled: list = []

    def compile(function):
        compiled.append(lambda *args: function(*args))
        return compiled[-1]

    graphs = itertools.count(0, per_step * steps_torch.WARM)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(steps_torch, "_graphs_made", lambda: next(graphs))
    step = CompiledStep(TINY["mlp"], METHODS["plain"], torch.device("cpu"), "float32")
    model, update = compiled
    assert step.forward is model
    assert (step.updates == [update]) == (not per_step)
    assert ["anew in every step" in note for note in step.notes] == [True] * per_step


def test_the_graph_is_that_of_the_step(monkeypatch) -> None:
    """One for each kind of step, chosen by `go_to`; what is counted is the step before it."""

    class Graph:
        """Counts its replays."""

        def __init__(self) -> None:
            self.replays = 0

        def replay(self) -> None:
            """Once more."""
            self.replays += 1

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(GraphStep, "capturable", False)
    plain = GraphStep(TINY["mlp"], METHODS["plain"], torch.device("cpu"), "float32")
    plain()
    assert plain._graphs["step"].replays == 1
    rare = GraphStep(TINY["mlp"], RARE, torch.device("cpu"), "float32")
    for part, times in ((schedule.WITHOUT, 3), (schedule.WITH, 2)):
        rare.go_to(part)
        for _ in range(times):
            rare()
    rare.count()
    replays = {part: graph.replays for part, graph in rare._graphs.items()}
    assert replays == {schedule.WITHOUT: 3, schedule.WITH: 2}


def test_transient_memory_is_seen() -> None:
    """At least the gradients, which were gone before the step."""
    step = make("torch", NETWORKS["mlp-256"], METHODS["plain"])
    parameters = sum(p.numel() for p in step.model.parameters())
    (counts,) = step.count().parts.values()
    assert counts.transient_bytes >= 4 * parameters


@pytest.mark.parametrize(
    ("error", "setting", "text"),
    [
        (MemoryError(), "torch", "out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: 12 GiB"), "jax", "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "torch", "out of memory"),
        (RuntimeError("captured"), "torch-cudagraphs", "not captured: RuntimeError: captured"),
        (torch._dynamo.exc.Unsupported("x\ny"), "torch-compiled", "not compiled: Unsupported: x"),
        (torch._dynamo.exc.Unsupported("x"), "torch", None),
        (ValueError("a mistake"), "jax", None),
    ],
)
def test_which_errors_a_cell_may_say(error, setting, text) -> None:
    """All others end the job."""
    assert why_left_out(error, setting) == text
