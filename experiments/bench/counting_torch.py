"""Counting what a step does in PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.steps import Counts


class _Operators(TorchDispatchMode):
    """Counts the operators that are dispatched, and the bytes of those that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.number += 1
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, found)) if torch.is_tensor(t)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return found


def count(step: Callable[[], Any], device: torch.device, *, compiled: bool) -> Counts:
    """Make two steps, or one where the program cannot be looked into, and count.

    Args:
        step: from gradients that are gone to parameters that have moved.
        device: on which.
        compiled: whether it is: then only the memory is known.
    """
    transient = transient_bytes(step, device)
    if compiled:
        return Counts(transient_bytes=transient)
    operators, flops = _Operators(), FlopCounterMode(display=False)
    with flops, operators:
        step()
    return Counts(flops.get_total_flops(), operators.bytes, operators.number, transient)


def transient_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """The most that a step has allocated at a time, beside what was there before.

    On CUDA the caching allocator's own figure; on a CPU the running sum of all that the profiler
    has seen allocated and freed.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    profiler: Any = profiled.profiler
    results = profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
