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
from torch import nn

import torchnorm
from parity_tests import oracle
from parity_tests.models import train_torch
from parity_tests.models.outcome import Network, Outcome, Trial
from parity_tests.models.torch_networks import MODELS, Model, Seen, identity, itself, several
from parity_tests.tolerances import GATE, slice_error, summation

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
    return train_torch.call(module, inputs)


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


def view_of(layer: Any, x: torch.Tensor) -> oracle.View:
    """Where a layer's numbers lie in x, in the kernel of the oracle's layout and in z."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        inputs = x.shape[-1]
        return oracle.Dense().view(
            (x.numel() // inputs, inputs), (inputs, layer.weight.numel() // inputs)
        )
    assert layer.padding_mode == "zeros"
    assert not isinstance(layer.padding, str)
    last = (x.shape[0], *x.shape[2:], x.shape[1])
    window, groups = layer.kernel_size, layer.groups
    if layer.transposed:
        operation = oracle.TorchConvTranspose(
            layer.stride, layer.padding, layer.output_padding, groups, layer.dilation
        )
        return operation.view(last, tuple(layer.weight.shape))
    operation = oracle.Convolution(
        strides=layer.stride,
        padding=tuple((p, p) for p in layer.padding),
        kernel_dilation=layer.dilation,
        feature_group_count=groups,
    )
    return operation.view(last, (*window, layer.in_channels // groups, layer.out_channels))


def neurons_of(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """A weight or its gradient as [O, I], I counting channels first, then taps."""
    if type(layer).__name__ == "Conv1D":
        return weight.T
    if not getattr(layer, "transposed", False):
        return weight.flatten(1)
    groups = layer.groups
    parts = weight.flatten(2).unflatten(0, (groups, -1))  # [groups, channels, O, taps]
    return parts.transpose(1, 2).flatten(2).flatten(0, 1)


def expected_gradients(
    layer: nn.Module, x: torch.Tensor, g_z: torch.Tensor, s: torch.Tensor
) -> tuple[np.ndarray, Any]:
    """The oracle's weight gradient, as `neurons_of` lays it out, and bias gradient of one layer."""
    return gradients_and_unit(layer, x, g_z, s)[:2]


def gradients_and_unit(
    layer: nn.Module, x: torch.Tensor, g_z: torch.Tensor, s: torch.Tensor
) -> tuple[np.ndarray, Any, np.ndarray]:
    """The same and the unit of the weight gradient's error.

    Behind a normalization a sum over samples may cancel almost to nothing; its error is measured in
    what the roundings of its terms make of it (see `tolerances`).
    """
    if isinstance(layer, nn.modules.conv._ConvNd):
        x, g_z, s = (t.movedim(1, -1) for t in (x, g_z, s))
        view = view_of(layer, x.movedim(-1, 1))
    else:
        view = view_of(layer, x)
    rows = view.patches(x.numpy())
    delta, weight = (t.numpy().ravel()[view.z] for t in (g_z, s.abs()))
    bias = layer.bias is not None
    kernels, biases, units = [], [], []
    for x_g, delta_g, weight_g in zip(
        *(a.swapaxes(0, 1) for a in (rows, delta, weight)), strict=True
    ):
        kernel, g_bias, at = oracle.weight_gradients(
            x_g, delta_g, weight_g, oracle.Knobs(), bias=bias
        )
        columns = zip(at.mean.T, delta_g.T, strict=True)
        terms = np.stack([np.abs(x_g - mean).T @ np.abs(d) for mean, d in columns], axis=1)
        units.append(summation(len(x_g), np.float64) / GATE["float64"] * terms / at.sigma**2)
        kernels.append(kernel)
        biases.append(g_bias)

    def by_neuron(of_groups: list[np.ndarray]) -> np.ndarray:
        taps = np.concatenate([part.T for part in of_groups]).reshape(-1, view.taps, inputs)
        return taps.swapaxes(1, 2).reshape(len(taps), -1)

    inputs = rows.shape[2] // view.taps
    g_bias = np.concatenate(biases) if bias else None
    return by_neuron(kernels), g_bias, by_neuron(units)


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
    torchnorm.revert(module)
    for (name, a), (_, b) in zip(module.named_modules(), reference.named_modules(), strict=True):
        if type(a) is not type(b) or set(vars(a)) != set(vars(b)):
            outcome.unequal.append(f"{name} after reverting")
    module.load_state_dict(before)
    _default_form(module, inputs, outcome, reference_out, reference_gradients)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _default_form(
    module: nn.Module,
    inputs: Any,
    outcome: Outcome,
    out: torch.Tensor,
    gradients_of: dict[str, Any],
) -> None:
    """Outputs and all gradients are the framework's while statistics are recorded; a step."""
    torchnorm.convert(module, inputs)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    torchnorm.optim.in_neuron_coordinates(optimizer, module)
    found_out, found = gradients(module, inputs)
    if not torch.equal(found_out, out):
        outcome.unequal.append("the output, by default")
    for name, gradient in gradients_of.items():
        same = found[name] is None if gradient is None else torch.equal(gradient, found[name])
        if not same:
            outcome.unequal.append(f"the gradient of {name}, by default")
    optimizer.step()
    if not call(module, inputs).isfinite().all():
        outcome.unequal.append("finite numbers after a step")


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
    row = outcome.report[name]
    expectation = next((e for p, e in model.seen.items() if fnmatchcase(name, p)), itself(identity))
    if row.unresolved or (expectation is several and row.gate is None):
        expectation = itself(identity)  # its own moments, whatever follows
    if expectation is several:
        outcome.unclear.append(name)
        return
    (x, z), g_z = seen[name], errors[name]
    s = expectation(seen, name)
    if s.shape != z.shape:  # laid out anew on the way: [N, T, C] for [N, C, T]
        s = s.transpose(1, 2)
    kernel, bias, unit = gradients_and_unit(layer, x, g_z, s)
    actual = neurons_of(layer, found[f"{name}.weight"])
    compared: dict[str, tuple[Any, ...]] = {"weight": (actual, kernel, (0,), unit)}
    if bias is not None:
        compared["bias"] = (found[f"{name}.bias"], bias, (), 0.0)
    for which, (ours, theirs, axes, unit) in compared.items():
        if not np.any(theirs):  # a dead layer, at these initial values
            outcome.unequal += [f"the zero gradient of {name}.{which}"] * bool(ours.any())
            continue
        outcome.errors[f"{name}.{which}"] = slice_error(ours, theirs, axes=axes, unit=unit)


def networks() -> Iterator[Network]:
    """All of them, as the command takes them."""
    for model in MODELS:

        def run(model: Model = model) -> Outcome:
            with one_thread():
                return measure(model)

        yield Network(model.name, "torch", run, model.needs, _trial(model))


def _trial(model: Model) -> Trial | None:
    """How the model is trained."""
    if model.task is None:
        return None

    def run(seed: int, rate: float, ours: bool) -> float:
        with one_thread():
            return train_torch.trial(model, seed, rate, ours)

    return Trial(model.task.text, model.rate, run)
