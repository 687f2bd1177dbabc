"""Any optimizer in the neurons' coordinates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.coordinates import Moments, gradient_into, parameters_into, pull_back
from torchnorm.optim.decay import amount, stands_still
from torchnorm.optim.hooks import handles
from torchnorm.optim.layer_statistics import Layer, Layers
from torchnorm.optim.layers import Pair, changed, check_model, layout, learned
from torchnorm.optim.refusals import check_needs_gradients_only, check_optimizer, check_state
from torchnorm.optim.wrapped_class import check_step, start_anew, wrap
from torchnorm.statistics.parts import moments as moments_in
from torchnorm.statistics.parts import usable as usable_in
from torchnorm.statistics.tracked import Statistics


def in_neuron_coordinates(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    process_group: Any = None,
    record_in_eval: bool = False,
) -> torch.optim.Optimizer:
    """Run any optimizer in coordinates in which each neuron's inputs are standardized.

        g~_W = (g_W - mean g_b) / sigma,  g~_b = g_b          the gradient, into the coordinates
        dw~, db~ = inner(g~, w~ = sigma w, b~ = b + mean.w)   the inner optimizer's step
        dW = dw~ / sigma,  db = db~ - sum_i mean dW           the step, out of them

    mean and sigma are those of the layer's statistics (see `torchnorm.Rule`). sigma is relative to
    its root mean square over a neuron's inputs, so that steps are as large as the plain optimizer's
    and the rate stays that one's; with ``Rule(step_size="standardized")`` it is absolute.

    Decoupled weight decay (AdamW) is one of the original parameters that it is asked for, exactly,
    and so is the L2 term of SGD: the bias does not make up for it. That of Adam goes through Adam's
    own scaling, in the coordinates.

    What does not learn does not move, and nothing makes up for it: an entry whose plain gradient is
    exactly 0 (frozen, pruned, masked by a hook) has none in the coordinates; a neuron whose bias's
    is, or whose bias has a rate of 0, has second moments about zero, as without a bias; an input
    that does not vary has no gradient. A layer without usable statistics (of no sample so far, a
    single one without `decay`, ...) makes no step but for weight decay; `skipped_steps` counts
    them.

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
        record_in_eval: whether layers in eval mode record too, for fine-tuning with parts of the
            model (frozen normalizers, no dropout) in ``eval()``. False: a pass in eval mode leaves
            no trace. Passes under `torch.no_grad` never do.

    Returns:
        The same optimizer, with another `step`: param groups, schedulers, GradScaler, closures and
        hooks (which see the parameters, not the coordinates) work as before. `step` uses the
        statistics gathered by the backward passes since the last one and forgets them; so gradients
        accumulated over micro-batches are those of the whole batch. `zero_grad` forgets them too
        (and so does ``model.zero_grad()`` at the next forward pass, but not with
        ``set_to_none=False``, in a compiled model or under FSDP2).
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
            were never gathered (the model was in eval mode, say), and for a model that was
            reverted; in `load_state_dict`, for a state_dict without statistics or with those of
            another model.

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
    layers = Layers(model, process_group, record_in_eval=record_in_eval)
    if not layers.add(optimizer):
        raise ValueError(
            "optimizer: got none of the weights of the model's layers, expected some; make it of "
            "model.parameters()"
        )
    wrap(optimizer, layers, _take_step)
    return optimizer


def _take_step(optimizer: Any, owner: Layers, inner_step: Callable[[], Any]) -> None:
    """The inner optimizer's step, in the coordinates."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    start_anew(optimizer, owner.leave_changed())
    merged = owner.merged(learned(optimizer))
    # GradScaler leaves it to a fused optimizer to skip a step: a tensor, above 0 if so.
    skipped = getattr(optimizer, "found_inf", None)
    layers = [
        _coordinates(owner.layers[name], statistics, groups) for name, statistics in merged.items()
    ]
    decays = [_decays(optimizer, owner, layer, groups) for layer in layers]
    saved: list[_Saved] = []
    try:
        for layer, decay in zip(layers, decays, strict=True):
            saved.append(_saved(layer, decay))
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
    for layer, before, decay in zip(layers, saved, decays, strict=True):
        _leave(layer, before, decay, skipped)
    owner.keep(merged, skipped)


class _Coordinates(NamedTuple):
    """What changes the coordinates of one layer's parameters.

    Attributes:
        module: the layer.
        parameters: its weight, and its bias or None where that may not move.
        grads: their plain gradients, which say what learns.
        statistics: of the layer.
        moments: of each neuron's inputs.
        usable: whether there are any; where not, the layer has no gradient and plain coordinates.
        parts: see `Layer`.
    """

    module: Any
    parameters: Pair
    grads: Pair
    statistics: Statistics
    moments: Moments
    usable: torch.Tensor
    parts: int

    def with_fixed(self, fixed: torch.Tensor) -> "_Coordinates":
        """With second moments about zero for neurons [O, 1, ...] whose bias does not learn."""
        if _known_to_be_none(fixed):
            return self
        weight = self.parameters.weight
        moments, other = (
            [_beside(value, weight) for value in (each.mean, each.sigma, each.varies)]
            for each in (
                self.moments,
                _moments(self.statistics, self.usable, self.parts, centered=False),
            )
        )
        mean, sigma = (torch.where(fixed, b, a) for a, b in zip(moments[:2], other, strict=False))
        moments = self.moments._replace(mean=mean, sigma=sigma, varies=moments[2] | fixed)
        return self._replace(moments=moments)

    def changed(self, change: Any, pair: Pair) -> Pair:
        """A change of coordinates, of what lies at the parameters."""
        dtype = torch.promote_types(self.moments.sigma.dtype, pair.weight.dtype)
        moments = Moments._make(_beside(value, pair.weight) for value in self.moments)
        return changed(pair, self.module, dtype, lambda flat: Pair(*change(*flat, moments)))


def _beside(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """As a tensor that may meet the parameter: under FSDP2 replicated over its mesh."""
    if not hasattr(parameter, "device_mesh") or hasattr(value, "device_mesh"):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _coordinates(
    layer: Layer, statistics: Statistics, groups: dict[int, dict[str, Any]]
) -> _Coordinates:
    """The coordinates; the plain ones where the statistics are of no use."""
    parameters = Pair(layer.weight, layer.bias if _learns(layer, groups) else None)
    grads = Pair(*(None if p is None else p.grad for p in parameters))
    parts, neurons = layer.parts, len(layout(layer.module)(layer.weight.detach()))
    usable = usable_in(statistics, parts, neurons)
    moments = _moments(statistics, usable, parts, centered=grads.bias is not None)
    made = _Coordinates(layer.module, parameters, grads, statistics, moments, usable, parts)
    if grads.bias is None or _known_to_be_none(grads.bias == 0):
        return made
    return made.with_fixed(
        _neurons(layer.module, grads, lambda weight, bias: _any(weight != 0) & (bias == 0))
    )


def _moments(
    statistics: Statistics, usable: torch.Tensor, parts: int, *, centered: bool
) -> Moments:
    moments = moments_in(statistics, parts, len(usable) if parts else 0, centered=centered)
    return moments._replace(
        mean=torch.where(usable, moments.mean, 0), sigma=torch.where(usable, moments.sigma, 1)
    )


def _neurons(module: Any, pair: Pair, which: Callable[..., torch.Tensor]) -> torch.Tensor:
    """`which` of the neurons, [O, 1, ...], from what lies at their weights and biases."""
    found: list[torch.Tensor] = []

    def look(flat: Pair) -> Pair:
        found.append(which(*flat))
        return flat

    changed(pair, module, pair.weight.dtype, look)
    return found[0]


def _any(flags: torch.Tensor) -> torch.Tensor:
    return flags.any(tuple(range(1, flags.ndim)), keepdim=True)


def _known_to_be_none(which: torch.Tensor) -> bool:
    """As far as no device has to be waited for."""
    return which.device.type == "cpu" and not hasattr(which, "device_mesh") and not which.any()


def _learns(layer: Layer, groups: dict[int, dict[str, Any]]) -> bool:
    """Whether the layer's bias does, as far as it is no matter of single neurons."""
    bias, group = layer.bias, groups.get(id(layer.bias))
    if bias is None or bias.grad is None or group is None:
        return False
    return not stands_still(group) or stands_still(groups[id(layer.weight)])


class _Decays(NamedTuple):
    """What the decay of a layer's parameters asks for; see `decay.py`.

    Attributes:
        weight: by how much of itself the weight decays beside the step, which nothing makes up for.
        plain_bias: whether the bias decays beside the step, and so is not seen with its mean.
        bias: by how much of the mean response, at the gradient of the bias, its decay would be
            wrong: where decay goes through a momentum.
    """

    weight: Any
    plain_bias: bool
    bias: Any


def _decays(
    optimizer: Any, owner: Layers, layer: _Coordinates, groups: dict[int, dict[str, Any]]
) -> _Decays:
    weight, bias = (groups.get(id(p)) for p in layer.parameters)
    assert weight is not None
    kind = owner.decay_of(optimizer, weight)
    share = amount(weight) if kind == "decoupled" else 0
    if bias is None:
        return _Decays(share, plain_bias=False, bias=0)
    bias_kind = owner.decay_of(optimizer, bias)
    extra = 0
    if "linear" in (kind, bias_kind) and not stands_still(bias):
        extra = amount(weight) / bias["lr"] - bias.get("weight_decay", 0)
        extra = -extra if bias.get("maximize") else extra
    return _Decays(share, plain_bias="decoupled" in (kind, bias_kind), bias=extra)


class _Saved(NamedTuple):
    """A layer's parameters and gradients, before and in the coordinates."""

    values: Pair
    grads: Pair
    inner_values: Pair
    inner_grads: Pair


def _saved(layer: _Coordinates, decay: _Decays) -> _Saved:
    values = Pair(*(None if p is None else p.clone() for p in layer.parameters))
    inner_values = layer.changed(parameters_into, values)
    usable = _beside(layer.usable, values.weight)

    def into(*pair_and_coordinates: Any) -> Pair:
        gradient = gradient_into(*pair_and_coordinates)
        return Pair(*(None if g is None else torch.where(usable, g, 0) for g in gradient))

    inner_grads = layer.changed(into, layer.grads)
    if values.bias is not None:
        if not _is_zero(decay.bias):
            # The weight's decay moves the mean response, and so b~; b itself is to decay as asked.
            extra = decay.bias * (inner_values.bias - values.bias)
            inner_grads = inner_grads._replace(bias=inner_grads.bias + extra)
        if decay.plain_bias:
            inner_values = inner_values._replace(bias=values.bias)
    return _Saved(values, layer.grads, inner_values, inner_grads)


def _is_zero(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and value == 0


def _weights(layer: _Coordinates, saved: _Saved) -> tuple[torch.Tensor, ...]:
    """(parameter, value before, gradient) of the weight, in the coordinates."""
    return layer.parameters.weight, saved.inner_values.weight, saved.inner_grads.weight


def _set(layer: _Coordinates, values: Pair, grads: Pair) -> None:
    for parameter, value, grad in zip(layer.parameters, values, grads, strict=True):
        if parameter is not None:
            parameter.copy_(value)
            # The gradient itself stays as it is, for whoever looks at it after the step.
            parameter.grad = grad


def _leave(layer: _Coordinates, saved: _Saved, decay: _Decays, skipped: Any) -> None:
    weight, bias = (
        None if p is None else p - before
        for p, before in zip(layer.parameters, saved.inner_values, strict=True)
    )
    decayed = None
    if not _is_zero(decay.weight):
        # Nothing makes up for what has decayed.
        share = decay.weight if skipped is None else torch.where(skipped > 0, 0, decay.weight)
        weight, decayed = weight + share * saved.inner_values.weight, share * saved.values.weight
    steps = Pair(weight, bias)
    still = None if bias is None else (bias == 0) & (layer.grads.bias == 0)
    if still is not None and not _known_to_be_none(still):
        # Of a neuron without a gradient now memory may move the weight, but not such a bias.
        layer = layer.with_fixed(_neurons(layer.module, Pair(weight, still), lambda _, b: b != 0))
    steps = layer.changed(pull_back, steps)
    _set(layer, saved.values, saved.grads)
    for parameter, step in zip(layer.parameters, steps, strict=True):
        if parameter is not None:
            parameter.add_(step)
    if decayed is not None:
        layer.parameters.weight.sub_(decayed)
