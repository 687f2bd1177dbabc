"""Networks in PyTorch, converted whole and compared with the oracle, in float64."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests import oracle
from parity_tests.models.outcome import Outcome
from parity_tests.models.torch_networks import MODELS, Model, Seen, identity, itself
from parity_tests.tolerances import slice_error

#: The form of the gradient that the oracle computes, and that needs no optimizer of ours.
PRECONDITIONED = torchnorm.Rule(gradient="preconditioned")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """These tensors are too small to share out: on a busy machine, threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build(model: Model, seed: int = 1) -> tuple[nn.Module, Any]:
    """The network in float64 with biases that are not zero, and inputs."""
    torch.manual_seed(seed)
    module = model.build().double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:  # initial values of 0 and 1 would hide mistakes
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.train(), model.inputs()


def call(module: nn.Module, inputs: Any) -> torch.Tensor:
    """The output: always with the same random numbers, for dropout."""
    torch.manual_seed(1)
    out = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    return out if isinstance(out, torch.Tensor) else next(iter(out.values()))


def loss(out: torch.Tensor) -> torch.Tensor:
    """A random cotangent: averages tell nothing behind a normalization."""
    generator = torch.Generator().manual_seed(2)
    return (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()


def gradients(module: nn.Module, inputs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """(the output, the gradient of every parameter)."""
    module.zero_grad(set_to_none=True)
    out = call(module, inputs)
    loss(out).backward()
    return out.detach(), {name: p.grad for name, p in module.named_parameters()}


def spy(module: nn.Module, inputs: Any) -> tuple[Seen, dict[str, torch.Tensor]]:
    """What every module is given and returns, and the gradient at what it returns."""
    seen: Seen = {}
    errors: dict[str, torch.Tensor] = {}
    handles = []

    def hook(name: str) -> Callable:
        def note(_: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(out, torch.Tensor) and isinstance(first, torch.Tensor):
                seen[name] = first.detach().clone(), out.detach().clone()
                if out.requires_grad:
                    out.register_hook(lambda g: errors.__setitem__(name, g.clone()))

        return note

    for name, part in module.named_modules():
        handles.append(part.register_forward_hook(hook(name), with_kwargs=True))
    gradients(module, inputs)
    for handle in handles:
        handle.remove()
    return seen, errors


def rows_of(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What each neuron reads, [N,I], group by group: explicit patches, channels first."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return [x.reshape(-1, x.shape[-1])]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    assert not isinstance(layer.padding, str)
    window = [layer.kernel_size, layer.dilation, layer.padding, layer.stride]
    if isinstance(layer, nn.Conv1d):
        x, window = x[:, :, None], [(a, b[0]) for a, b in zip((1, 1, 0, 1), window, strict=True)]
    patches = F.unfold(x, *window).transpose(1, 2)  # [images, positions, channels * taps]
    return list(patches.reshape(-1, patches.shape[-1]).chunk(layer.groups, 1))


def expected_gradients(
    layer: nn.Module, x: torch.Tensor, g_z: torch.Tensor, s: torch.Tensor
) -> tuple[np.ndarray, Any]:
    """The oracle's weight gradient, [O, I], and bias gradient of one layer."""
    convolution = isinstance(layer, nn.modules.conv._ConvNd)
    g_z, s = (t.movedim(1, -1) if convolution else t for t in (g_z, s))
    groups = rows_of(layer, x)
    delta = g_z.reshape(-1, g_z.shape[-1]).chunk(len(groups), 1)
    weight = s.abs().reshape(-1, s.shape[-1]).chunk(len(groups), 1)
    bias = layer.bias is not None
    parts = [
        oracle.weight_gradients(a.numpy(), d.numpy(), w.numpy(), oracle.Knobs(), bias=bias)
        for a, d, w in zip(groups, delta, weight, strict=True)
    ]
    kernel = np.concatenate([part[0].T for part in parts])
    if not bias:
        return kernel, None
    biases: list[Any] = [part[1] for part in parts]
    return kernel, np.concatenate(biases)


def measure(model: Model) -> Outcome:
    """Convert, compare with the framework and with the oracle, train one step, revert."""
    start = time.perf_counter()
    module, inputs = build(model)
    reference = copy.deepcopy(module)
    before = copy.deepcopy(module.state_dict())
    report = torchnorm.convert(module, inputs, rule=PRECONDITIONED)
    outcome = Outcome(model.name, "torch", report)
    for name, value in module.state_dict().items():
        if not torch.equal(value, before[name]):
            outcome.unequal.append(f"{name} after converting")
    seen, errors = spy(reference, inputs)
    reference.load_state_dict(before)  # the running statistics of a BatchNorm
    reference_out, reference_gradients = gradients(reference, inputs)
    out, found = gradients(module, inputs)
    if not torch.equal(out, reference_out):
        outcome.unequal.append("the output")
    converted = {row.layer for row in report.converted}
    for name, gradient in reference_gradients.items():
        same = gradient is None or torch.equal(gradient, found[name])
        if name.rpartition(".")[0] not in converted and not same:
            outcome.unequal.append(f"the gradient of {name}")
    for row in report.converted:
        _compare(model, outcome, reference.get_submodule(row.layer), row.layer, seen, errors, found)
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    if not call(module, inputs).isfinite().all():
        outcome.unequal.append("finite numbers after a step")
    torchnorm.revert(module)
    for (name, a), (_, b) in zip(module.named_modules(), reference.named_modules(), strict=True):
        if type(a) is not type(b) or set(vars(a)) != set(vars(b)):
            outcome.unequal.append(f"{name} after reverting")
    outcome.seconds = time.perf_counter() - start
    return outcome


def _compare(
    model: Model,
    outcome: Outcome,
    layer: Any,
    name: str,
    seen: Seen,
    errors: dict[str, torch.Tensor],
    found: dict[str, Any],
) -> None:
    """One layer's gradients against the oracle's."""
    expectation = next((e for p, e in model.seen.items() if fnmatchcase(name, p)), itself(identity))
    (x, z), g_z = seen[name], errors[name]
    s = expectation(seen, name)
    if s.shape != z.shape:  # laid out anew on the way: [N, T, C] for [N, C, T]
        s = s.transpose(1, 2)
    kernel, bias = expected_gradients(layer, x, g_z, s)
    actual = found[f"{name}.weight"]
    actual = actual.T if type(layer).__name__ == "Conv1D" else actual.flatten(1)
    compared: dict[str, tuple[Any, Any, tuple[int, ...]]] = {"weight": (actual, kernel, (0,))}
    if bias is not None:
        compared["bias"] = (found[f"{name}.bias"], bias, ())
    for which, (ours, theirs, axes) in compared.items():
        if not np.any(theirs):  # a dead layer, at these initial values
            outcome.unequal += [f"the zero gradient of {name}.{which}"] * bool(ours.any())
            continue
        outcome.errors[f"{name}.{which}"] = slice_error(ours, theirs, axes=axes)


def networks() -> Iterator[tuple[str, str, Callable[[], Outcome]]]:
    """(name, library, () -> its outcome) of every network."""
    for model in MODELS:

        def run(model: Model = model) -> Outcome:
            with one_thread():
                return measure(model)

        yield model.name, "torch", run
