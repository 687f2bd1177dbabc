"""Any optimizer in the neurons' coordinates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.coordinates import Moments, gradient_into, parameters_into, step_out_of
from torchnorm.optim.hooks import handles
from torchnorm.optim.layer_statistics import Layer, Layers
from torchnorm.optim.layers import Pair, changed, check_model, learned
from torchnorm.optim.refusals import check_needs_gradients_only, check_optimizer, check_state
from torchnorm.optim.wrapped_class import check_step, start_anew, wrap
from torchnorm.statistics import tracked
from torchnorm.statistics.tracked import Statistics


def in_neuron_coordinates(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, process_group: Any = None
) -> torch.optim.Optimizer:
    """Run any optimizer in coordinates in which each neuron's inputs are standardized.

        g~_W = (g_W - mean g_b) / sigma,  g~_b = g_b          the gradient, into the coordinates
        dw~, db~ = inner(g~, w~ = sigma w, b~ = b + mean.w)   the inner optimizer's step
        dW = dw~ / sigma,  db = db~ - sum_i mean dW           the step, out of them

    mean and sigma are those of the layer's statistics (see `torchnorm.Rule`). With `step_scale` w~
    and b~ are larger by the root of the divisor.

    The inner optimizer sees parameters in the coordinates too, so its decoupled weight decay
    (AdamW) comes out as a decay of the original parameters, exactly; so does the L2 term of SGD.
    That of Adam goes through Adam's own scaling, in the coordinates.

    Args:
        optimizer: a `torch.optim.Optimizer` of any class that has made no steps, for any parameters
            of the model; fused and foreach forms too. But not one that evaluates the loss at
            parameters of its own (LBFGS, SAM), or keeps parameters (ASGD, schedule-free ones,
            Prodigy, DoG): most of these are told by what they have after their first step, which is
            not made then. Of one that runs another (accelerate's, Lookahead, SAM) the other.
        model: with layers of `torchnorm`, or converted; may be wrapped in DDP, FSDP2 or
            torch.compile. Its layers begin to record. Two models: ``nn.ModuleList([one, other])``.
        process_group: processes over which the batch is spread. None: a layer's own, or all, as
            `torch.nn.SyncBatchNorm`.

    Returns:
        The same optimizer, with another `step`: param groups, schedulers, GradScaler, closures and
        hooks (which see the parameters, not the coordinates) work as before. `step` uses the
        statistics gathered by the backward passes since the last one and forgets them; so gradients
        accumulated over micro-batches are those of the whole batch (but the divisors of
        ``step_scale="eigenvalue"`` and ``"bnp"`` are the mean of those of the parts, also over
        processes). `zero_grad` forgets them too (and so does ``model.zero_grad()`` at the next
        forward pass, but not with ``set_to_none=False``, in a compiled model or under FSDP2).
        `add_param_group` looks for new layers in the model. The state_dict has one more entry,
        ``"neuron_stats"``. Parameters that belong to no layer are left to the optimizer unchanged.
        A layer whose weight has no gradient is left out; one whose bias has none, or is not in this
        optimizer, has second moments about zero. If the step raises, all parameters, gradients and
        statistics are as before.

    A layer whose weight is computed from other parameters (pruning, a parametrization), or becomes
    so or another parameter later, is left out with a warning: the optimizer steps its parameters as
    they are, and starts anew with them. `torchnorm.optim.remove` gives the optimizer and the model
    back as they were; when the optimizer is gone the model stops recording.

    Raises:
        TypeError: for another type of optimizer or model.
        ValueError: for such an optimizer, one that has made steps, for a model in which no layer
            records, or one adapts the gradient itself (``gradient="preconditioned"``), or that is
            in FSDP1, for two layers with one weight or bias, for an optimizer with none of the
            layers' weights or with one of a layer elsewhere, one that is in coordinates already,
            has another preconditioner or a `step` that was replaced; in `step`, for statistics that
            were never gathered (the model was in eval mode, say), for a model that was reverted,
            and on the CPU for statistics of a single sample without `decay` (elsewhere that makes
            the step NaN); in `load_state_dict`, for a state_dict without statistics or with those
            of another model.

    copy.deepcopy and pickle: of the model and the optimizer together, as for every optimizer.
    Checkpoints of sharded models: of ``optimizer.state_dict()`` itself;
    `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` leaves the statistics out,
    and what it returns is refused.

    Example:
        >>> import torch, torchnorm
        >>> _ = torch.manual_seed(0)
        >>> x = torch.arange(8.0).reshape(8, 1) + 100
        >>> layer = torchnorm.Linear(1, 1, gate=None)
        >>> optimizer = torchnorm.optim.in_neuron_coordinates(
        ...     torch.optim.Adam(layer.parameters(), lr=0.3), layer)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     loss = ((layer(x) - (x - 100)) ** 2).mean()
        ...     loss.backward()
        ...     optimizer.step()
        >>> bool(loss < 0.01)  # plain Adam: 4.7
        True

    References:
        Ye, arXiv 2410.00232 (an optimizer and its regularization in other coordinates); Lange,
        Helfrich, Ye, JMLR 23(72), 2022 (the coordinates, uniform weights).
    """
    check_optimizer(optimizer, "in_neuron_coordinates")
    check_model(model)
    for name in handles(optimizer).keys() - {"centralize"}:
        raise ValueError(f"optimizer: got one with {name} already, expected another")
    check_needs_gradients_only(optimizer)
    check_step(optimizer, "in_neuron_coordinates")
    layers = Layers(model, process_group)
    if not layers.add(optimizer):
        raise ValueError(
            "optimizer: got none of the weights of the model's layers, expected some; make it of "
            "model.parameters()"
        )
    wrap(optimizer, layers, _take_step)
    return optimizer


def _take_step(optimizer: Any, owner: Layers, inner_step: Callable[[], Any]) -> None:
    """The inner optimizer's step, in the coordinates."""
    parameters = learned(optimizer)
    start_anew(optimizer, owner.leave_changed())
    merged = owner.merged(parameters)
    # GradScaler leaves it to a fused optimizer to skip a step: a tensor, above 0 if so.
    skipped = getattr(optimizer, "found_inf", None)
    layers = [
        _coordinates(owner.layers[name], statistics, parameters, skipped)
        for name, statistics in merged.items()
    ]
    saved: list[_Saved] = []
    try:
        for layer in layers:
            saved.append(_saved(layer))
            _set(layer, saved[-1].inner_values, saved[-1].inner_grads)
        inner_step()
        if not owner.checked and layers:
            inner = zip(layers, saved, strict=True)
            check_state(optimizer, (_weights(layer, before) for layer, before in inner))
            owner.checked = skipped is None
    except BaseException:
        for layer, before in zip(layers, saved, strict=False):
            _set(layer, before.values, before.grads)
        raise
    for layer, before in zip(layers, saved, strict=True):
        _leave(layer, before)
    owner.keep(merged, skipped)


class _Coordinates(NamedTuple):
    """What changes the coordinates of one layer's parameters.

    Attributes:
        module: the layer.
        parameters: its weight, and its bias or None where that may not move.
        moments: of each neuron's inputs.
        root: of what a step is divided by, ().
    """

    module: nn.Module
    parameters: Pair
    moments: Moments
    root: torch.Tensor

    def changed(self, change: Any, pair: Pair) -> Pair:
        """A change of coordinates, of what lies at the parameters."""
        dtype = torch.promote_types(self.moments.sigma.dtype, pair.weight.dtype)
        moments = Moments._make(_beside(value, pair.weight) for value in self.moments)
        root = _beside(self.root, pair.weight)
        return changed(pair, self.module, dtype, lambda flat: Pair(*change(*flat, moments, root)))


def _beside(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """As a tensor that may meet the parameter: under FSDP2 replicated over its mesh."""
    if not hasattr(parameter, "device_mesh"):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _coordinates(
    layer: Layer, statistics: Statistics, parameters: set[int], skipped: Any
) -> _Coordinates:
    """The coordinates; raises where the statistics are of no use."""
    bias = layer.bias
    if bias is not None and (bias.grad is None or id(bias) not in parameters):
        bias = None
    usable = tracked.usable(statistics)
    skip = torch.zeros_like(usable) if skipped is None else skipped.to(usable.device) > 0
    if usable.device.type == "cpu" and not bool(usable | skip):
        raise ValueError(
            f"neuron_stats: got statistics of {layer.name!r} that were never updated or hold a "
            "single sample, which is its own mean; train on larger batches, or use a Rule with "
            "decay > 0"
        )
    root = torch.where(usable, statistics.per_call().divisor.sqrt(), torch.nan)
    root = torch.where(skip, 1, root)  # of a step of 0, which is to stay 0
    moments = tracked.moments(statistics, centered=bias is not None)
    return _Coordinates(layer.module, Pair(layer.weight, bias), moments, root)


class _Saved(NamedTuple):
    """A layer's parameters and gradients, before and in the coordinates."""

    values: Pair
    grads: Pair
    inner_values: Pair
    inner_grads: Pair


def _saved(layer: _Coordinates) -> _Saved:
    values = Pair(*(None if p is None else p.clone() for p in layer.parameters))
    grads = Pair(*(None if p is None else p.grad for p in layer.parameters))
    inner_values = layer.changed(parameters_into, values)
    return _Saved(values, grads, inner_values, layer.changed(gradient_into, grads))


def _weights(layer: _Coordinates, saved: _Saved) -> tuple[torch.Tensor, ...]:
    """(parameter, value before, gradient) of the weight, in the coordinates."""
    return layer.parameters.weight, saved.inner_values.weight, saved.inner_grads.weight


def _set(layer: _Coordinates, values: Pair, grads: Pair) -> None:
    for parameter, value, grad in zip(layer.parameters, values, grads, strict=True):
        if parameter is not None:
            parameter.copy_(value)
            # The gradient itself stays as it is, for whoever looks at it after the step.
            parameter.grad = grad


def _leave(layer: _Coordinates, saved: _Saved) -> None:
    steps = (
        None if p is None else p - before
        for p, before in zip(layer.parameters, saved.inner_values, strict=True)
    )
    steps = layer.changed(step_out_of, Pair(*steps))
    _set(layer, saved.values, saved.grads)
    for parameter, step in zip(layer.parameters, steps, strict=True):
        if parameter is not None:
            parameter.add_(step)
