"""Training steps in PyTorch: eager, compiled, and as CUDA graphs."""

import importlib
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._inductor import utils as inductor

import torchnorm
from experiments.bench import counting_torch, schedule
from experiments.bench.methods import SOAP, Method
from experiments.bench.networks import Network
from experiments.bench.networks_torch import build, inputs_of
from experiments.bench.problems import compile_errors, first_line
from experiments.bench.steps import RATE, WARM, Counted


class TorchStep:
    """An eager step of one method on one network; see `Step`."""

    capturable = False

    def __init__(self, network: Network, method: Method, device: torch.device, dtype: str) -> None:
        torch.manual_seed(0)
        self.every, self.device, self.notes = 1, device, []
        self.x = torch.randn(inputs_of(network), device=device)
        self.y = torch.randn(network.output_shape, device=device)
        low = dtype != "float32"
        # A CUDA graph must not find a parameter's copy of an earlier step.
        self._cast: dict[str, Any] = {"enabled": low, "cache_enabled": not self.capturable}
        self._cast["dtype"] = torch.bfloat16
        self.model = build(network, method.normalizer).to(device)
        parameters = list(self.model.parameters())
        self.optimizers = make_optimizers(method.optimizer, parameters, self.capturable)
        self._give_rule(method)
        self.forward: Callable[..., Any] = self.model
        self.updates: list[Callable[[], Any]] = [each.step for each in self.optimizers]
        self.compile_seconds = self._warm()

    def _give_rule(self, method: Method) -> None:
        rule = method.make_rule(torchnorm)
        if rule is None:
            return
        if rule.gradient == "preconditioned":
            torchnorm.convert(self.model, self.x, rule=rule)
            return
        (optimizer,) = self.optimizers
        torchnorm.prepare(self.model, optimizer, self.x, rule=rule)
        self.every = rule.interval

    def _warm(self) -> float:
        """Make the first steps, of all parts; the seconds that they took beyond later ones."""
        excess = 0.0
        for part in schedule.parts(self.every):
            times = []
            for _ in range(2):  # compiled programs have to see other counts than the first
                self.go_to(part)
                for _ in range(schedule.in_a_row(part, self.every, WARM)):
                    begin = time.perf_counter()
                    self()
                    self.wait()
                    times.append(time.perf_counter() - begin)
            excess += sum(times) - len(times) * min(times)
        return excess

    def __call__(self) -> None:
        """Make one step."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with torch.autocast(self.device.type, **self._cast):
            z = self.forward(self.x)
        (z.float() - self.y).square().mean().backward()
        for update in self.updates:
            update()

    def wait(self) -> None:
        """Until all steps are done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def go_to(self, part: str) -> None:
        """Set what the statistics have counted."""
        for stats in self._statistics():
            stats.set_count(*schedule.before(part, self.every))

    def _statistics(self) -> Iterator[Any]:
        for module in self.model.modules():
            stats = getattr(module, "neuron_stats", None)
            if stats is not None:
                yield stats

    def count(self) -> Counted:
        """By dispatch, and by the allocator; each part of a step by itself."""
        parts = {}
        for part in schedule.parts(self.every):

            def step(part: str = part) -> None:
                self.go_to(part)
                self()

            for optimizer in self.optimizers:
                optimizer.zero_grad()
            parts[part] = self._count_part(step)
        return Counted(self._state_bytes(), parts)

    def _count_part(self, step: Callable[[], None]) -> Any:
        return counting_torch.count(step, self.device, compiled=False)

    def _state_bytes(self) -> int:
        """Of parameters, buffers, and what optimizers and statistics hold, without counters."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for optimizer in self.optimizers:
            values = chain.from_iterable(state.values() for state in optimizer.state.values())
            tensors += chain.from_iterable(v if isinstance(v, list) else [v] for v in values)
        for stats in self._statistics():
            tensors += stats.read().present().values()
        return sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t) and t.ndim)


class CompiledStep(TorchStep):
    """The same with the model and, where that works, the optimizer's step compiled."""

    def _warm(self) -> float:
        self.forward = torch.compile(self.model)
        eager, breaks = self.updates, _graph_breaks()
        self.updates = [torch.compile(update) for update in eager]
        with _fresh_cache():
            try:
                seconds = super()._warm()
                problem = "that would be compiled anew in every step" if self._restless() else None
            except compile_errors() as error:
                problem = first_line(error)
            if problem is not None:
                self.notes.append(f"the optimizer's step is not compiled: {problem}")
                self.updates = eager
                seconds = super()._warm()
        if breaks := _graph_breaks() - breaks:
            self.notes.append(f"graph breaks when compiled: {breaks}")
        return seconds

    def _restless(self) -> bool:
        """Whether a warm step still compiles."""
        before = _graphs_made()
        for _ in range(WARM):
            self()
        return _graphs_made() - before >= WARM

    def _count_part(self, step: Callable[[], None]) -> Any:
        return counting_torch.count(step, self.device, compiled=True)


def _graph_breaks() -> int:
    """How many the compiler has had so far."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def _graphs_made() -> int:
    """How many graphs it has made so far; not frames, of which it also counts those it leaves."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _fresh_cache() -> Any:
    """Let a method compile all of its programs, also those that another has too."""
    made: Any = getattr(inductor, "fresh_cache", None) or inductor.fresh_inductor_cache
    return made()


class GraphStep(TorchStep):
    """The whole step as one CUDA graph for each of its parts."""

    capturable = True

    def _warm(self) -> float:
        self._graph: Any = None
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            seconds = super()._warm()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self._graphs = {part: self._captured(part) for part in schedule.parts(self.every)}
        self.go_to(schedule.parts(self.every)[0])
        return seconds

    def _captured(self, part: str) -> Any:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.go_to(part)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            super().__call__()
        return graph

    def __call__(self) -> None:
        """Make one step, of the part that `go_to` has chosen."""
        if self._graph is None:
            super().__call__()
        else:
            self._graph.replay()

    def go_to(self, part: str) -> None:
        """Choose the graph, once there are all."""
        super().go_to(part)
        if hasattr(self, "_graphs"):
            self._graph = self._graphs[part]

    def count(self) -> Counted:
        """Those of the eager step, of which the graph is a recording."""
        graphs = self.__dict__.pop("_graphs")
        self._graph = None
        try:
            return super().count()
        finally:
            self._graphs = graphs
            self.go_to(schedule.parts(self.every)[0])


CLASSES = {"torch": TorchStep, "torch-compiled": CompiledStep, "torch-cudagraphs": GraphStep}
"""The kind of step by the setting's name on the command line."""


def make_optimizers(
    name: str, parameters: list[nn.Parameter], capturable: bool
) -> list[torch.optim.Optimizer]:
    """Adam; Muon for matrices with Adam for the rest; or SOAP."""
    options: dict[str, Any] = {"capturable": True} if capturable else {}
    if name == "soap":
        return [importlib.import_module(SOAP["torch"]).SOAP(parameters, lr=RATE)]
    if name == "muon":
        muon: Any = torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=RATE)
        rest = [p for p in parameters if p.ndim != 2]
        return [muon, torch.optim.Adam(rest, lr=RATE, **options)]
    return [torch.optim.Adam(parameters, lr=RATE, **options)]
