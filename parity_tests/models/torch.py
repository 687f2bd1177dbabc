"""Networks in PyTorch, converted whole and compared with the oracle, in float64."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import torchnorm
from parity_tests import oracle
from parity_tests.models import train_torch
from parity_tests.models.outcome import Network, Outcome, Trial, Variant
from parity_tests.models.torch_networks import MODELS, Model, Seen, identity, itself, several
from parity_tests.tolerances import GATE, slice_error, summation
from torchnorm.optim.layers import recording
from torchnorm.statistics import merging

#: Module -> what it is given, returns, and the gradient at that, of each of its calls.
Calls = dict[str, list[list[Any]]]
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
    """What every module is given and returns in its last call, and the gradient at that."""
    last = {name: calls[-1] for name, calls in watch(module, inputs).items()}
    seen = {name: (x, z) for name, (x, z, _) in last.items()}
    return seen, {name: g for name, (*_, g) in last.items() if g is not None}


def watch(module: nn.Module, inputs: Any) -> Calls:
    """The same of all calls; of those that no gradient reaches only where there are no others."""
    calls: Calls = {}
    handles = []

    def hook(name: str) -> Callable:
        def note(_: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(out, torch.Tensor) and isinstance(first, torch.Tensor):
                noted = [first.detach().clone(), out.detach().clone(), None]
                calls.setdefault(name, []).append(noted)
                if out.requires_grad:
                    out.register_hook(lambda g: noted.__setitem__(2, g.clone()))

        return note

    for name, part in module.named_modules():
        handles.append(part.register_forward_hook(hook(name), with_kwargs=True))
    gradients(module, inputs)
    for handle in handles:
        handle.remove()
    reached = {name: [one for one in each if one[2] is not None] for name, each in calls.items()}
    return {name: reached[name] or each for name, each in calls.items()}


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
    return expected_of(layer, x, g_z, s)[:2]


class Expected(NamedTuple):
    """The oracle's numbers for one layer.

    Behind a normalization a sum over samples may cancel almost to nothing; its error is measured in
    what the roundings of its terms make of it (see `tolerances`), its `unit`.
    """

    kernel: np.ndarray
    bias: Any
    unit: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray


def expected_of(layer: nn.Module, x: torch.Tensor, g_z: torch.Tensor, s: torch.Tensor) -> Expected:
    """Gradients, and moments; all but the bias's as `neurons_of` lays it out."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        x, g_z, s = (t.movedim(1, -1) for t in (x, g_z, s))
        view = view_of(layer, x.movedim(-1, 1))
    else:
        view = view_of(layer, x)
    rows = view.patches(x.numpy())
    delta, weight = (t.numpy().ravel()[view.z] for t in (g_z, s.abs()))
    bias = layer.bias is not None
    kernels, biases, units, means, sigmas = [], [], [], [], []
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
        means.append(at.mean)
        sigmas.append(at.sigma)

    def by_neuron(of_groups: list[np.ndarray]) -> np.ndarray:
        taps = np.concatenate([part.T for part in of_groups]).reshape(-1, view.taps, inputs)
        return taps.swapaxes(1, 2).reshape(len(taps), -1)

    inputs = rows.shape[2] // view.taps
    g_bias = np.concatenate(biases) if bias else None
    units, means, sigmas = map(by_neuron, (units, means, sigmas))
    return Expected(by_neuron(kernels), g_bias, units, means, sigmas)


def measure(model: Model) -> Outcome:
    """Convert, compare with the framework and with the oracle, train one step, revert."""
    start = time.perf_counter()
    module, inputs = build(model)
    reference = copy.deepcopy(module)
    before = copy.deepcopy(module.state_dict())
    calls = watch(reference, inputs)
    reference.load_state_dict(before)  # the running statistics of a BatchNorm
    plain = gradients(reference, inputs)
    preconditioned = torchnorm.convert(module, inputs, rule=PRECONDITIONED)
    outcome = Outcome(model.name, "torch", preconditioned)
    for name, value in module.state_dict().items():
        if not torch.equal(value, before[name]):
            outcome.unequal.append(f"{name} after converting")
    out, found = gradients(module, inputs)
    converted = {row.layer: row for row in preconditioned.converted}
    others = {n: g for n, g in plain[1].items() if n.rpartition(".")[0] not in converted}
    _compare_bits(outcome, (plain[0], others), (out, found), "")
    for name, row in converted.items():
        layer = reference.get_submodule(name)
        expected = _expected(model, row, layer, calls)
        if expected is None:
            outcome.unclear.append(name)
        else:
            _compare_gradients(outcome, layer, name, expected, found)
    if converted:
        torchnorm.revert(module)
    module.load_state_dict(before)
    outcome.report = torchnorm.convert(module, inputs)
    if outcome.report.converted:
        layers = _default_form(module, inputs, outcome, plain)
        for row in outcome.report.converted:
            name, expected = row.layer, None
            if name in layers and name in calls:  # no experts, no part of a module
                expected = _expected(model, row, reference.get_submodule(name), calls)
            if expected is not None:
                _compare_moments(outcome, name, expected, layers[name])
            elif name not in outcome.unclear:
                outcome.unclear.append(name)
        torchnorm.revert(module)
    for (name, a), (_, b) in zip(module.named_modules(), reference.named_modules(), strict=True):
        if type(a) is not type(b) or set(vars(a)) != set(vars(b)):
            outcome.unequal.append(f"{name} after reverting")
    outcome.seconds = time.perf_counter() - start
    return outcome


def _default_form(
    module: nn.Module, inputs: Any, outcome: Outcome, plain: tuple[torch.Tensor, dict[str, Any]]
) -> dict[str, Any]:
    """Outputs and all gradients are the framework's while moments are recorded, {layer: these}."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
    torchnorm.optim.in_neuron_coordinates(optimizer, module)
    gradients(module, inputs)
    optimizer.step()  # the sums of several calls are about one place from now on
    _compare_bits(outcome, plain, gradients(module, inputs), ", by default")
    layers = {}
    for name, layer in recording(module).items():
        statistics = layer.neuron_stats.gathered()
        if statistics is not None and not getattr(layer, "parts", 0):
            moments = merging.moments(statistics, centered=layer.neuron_stats.centered)
            shape = layer.one_matrix().shape
            layers[name] = [a.expand(shape).flatten(1) for a in (moments.mean, moments.sigma)]
    optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.step()
    if not call(module, inputs).isfinite().all():
        outcome.unequal.append("finite numbers after a step")
    return layers


def _compare_bits(outcome: Outcome, plain: Any, found: Any, form: str) -> None:
    """The output and the gradients of these parameters, bit for bit."""
    if not torch.equal(found[0], plain[0]):
        outcome.unequal.append(f"the output{form}")
    for name, gradient in plain[1].items():
        other = found[1][name]
        if not (other is None if gradient is None else torch.equal(gradient, other)):
            outcome.unequal.append(f"the gradient of {name}{form}")


def _expected(model: Model, row: Any, layer: Any, calls: Calls) -> Expected | None:
    """The oracle's numbers; None where no slope is the right one."""
    name = row.layer
    expectation = next((e for p, e in model.seen.items() if fnmatchcase(name, p)), itself(identity))
    if row.unresolved or (expectation is several and row.gate is None):
        expectation = itself(identity)  # its own moments, whatever follows
    if expectation is several:
        return None
    count, slopes = len(calls[name]), []
    for k, (_, z, _) in enumerate(calls[name]):
        # What is called as often belongs to the same call.
        at = {other: each[k if len(each) == count else -1] for other, each in calls.items()}
        s = expectation({other: (x, z) for other, (x, z, _) in at.items()}, name)
        # Laid out anew on the way, maybe: [N, T, C] for [N, C, T].
        slopes.append(s if s.shape == z.shape else s.transpose(1, 2))
    x, _, g_z = (torch.cat(parts) for parts in zip(*calls[name], strict=True))
    return expected_of(layer, x, g_z, torch.cat(slopes))


def _compare_gradients(
    outcome: Outcome, layer: Any, name: str, expected: Expected, found: dict[str, Any]
) -> None:
    """One layer's gradients against the oracle's."""
    actual = neurons_of(layer, found[f"{name}.weight"])
    compared: dict[str, tuple[Any, ...]] = {
        "weight": (actual, expected.kernel, (0,), expected.unit)
    }
    if expected.bias is not None:
        compared["bias"] = (found[f"{name}.bias"], expected.bias, (), 0.0)
    for which, (ours, theirs, axes, unit) in compared.items():
        if not np.any(theirs):  # a dead layer, at these initial values
            outcome.unequal += [f"the zero gradient of {name}.{which}"] * bool(ours.any())
            continue
        outcome.errors[f"{name}.{which}"] = slice_error(ours, theirs, axes=axes, unit=unit)


def _compare_moments(outcome: Outcome, name: str, expected: Expected, found: Any) -> None:
    """What one layer has recorded against the oracle's moments."""
    mean, sigma = found
    if np.any(expected.mean):
        # A mean is a place: near zero its own size says nothing, but the spread around it does.
        error = slice_error(mean, expected.mean, axes=(0,), unit=expected.sigma)
        outcome.errors[f"{name}, mean"] = error
    else:
        outcome.unequal += [f"the zero mean of {name}"] * bool(mean.any())
    outcome.errors[f"{name}, sigma"] = slice_error(sigma, expected.sigma, axes=(0,))


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
        return model.trial

    def run(seed: int, rate: float, ours: Variant | None) -> float:
        with one_thread():
            return train_torch.trial(model, seed, rate, ours)

    return Trial(model.task.text, model.rate, run)
