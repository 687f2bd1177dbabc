"""Any optimizer in the neurons' coordinates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.coordinates import (
    Coordinates,
    gradient_into,
    known_to_be_all,
    parameters_into,
    pull_back,
)
from torchnorm.optim.decay import Decays, decays_of, stands_still
from torchnorm.optim.hooks import handles
from torchnorm.optim.layer_statistics import Layer, Layers
from torchnorm.optim.layers import Pair, changed, check_model, layout, learned
from torchnorm.optim.refusals import check_needs_gradients_only, check_optimizer, check_state
from torchnorm.optim.wrapped_class import check_step, start_anew, wrap
from torchnorm.statistics.parts import coordinates as coordinates_in
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
    for name in handles(optimizer).keys() - {"centralize", "proximal"}:
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
    decays = [decays_of(optimizer, owner, layer.parameters, groups) for layer in layers]
    saved: list[_Saved] = []
    try:
        for layer, decay in zip(layers, decays, strict=True):
            saved.append(_enter(layer, decay))
        inner_step()
        if not owner.checked and layers:
            inner = zip(layers, saved, decays, strict=True)
            # (Where the parameters are not needed, the trial has shown that none are kept.)
            seen = (_weights(layer, before) for layer, before, decay in inner if not decay.beside)
            check_state(optimizer, seen)
            owner.checked = skipped is None
    except BaseException:
        for layer, before in zip(layers, saved, strict=False):
            _restore(layer, before)
        raise
    for layer, before, decay in zip(layers, saved, decays, strict=True):
        _leave(layer, before, decay, skipped)
    owner.keep(merged, skipped)


class _Coordinates(NamedTuple):
    """What changes the coordinates of one layer's parameters.

    Attributes:
        layer: with its statistics so far.
        parameters: its weight, and its bias or None where that may not move.
        grads: their plain gradients, which say what learns.
        statistics: of the layer.
        at: the coordinates.
        usable: whether there are any; where not, the layer has no gradient and plain coordinates.
            None where they are known to be.
    """

    layer: Layer
    parameters: Pair
    grads: Pair
    statistics: Statistics
    at: Coordinates
    usable: torch.Tensor | None

    def with_fixed(self, fixed: torch.Tensor) -> "_Coordinates":
        """With second moments about zero for neurons [O, 1, ...] whose bias does not learn."""
        if known_to_be_all(~fixed):
            return self
        if hasattr(fixed, "full_tensor"):
            fixed = fixed.full_tensor()  # type: ignore[attr-defined]
        return self._replace(at=_at(self.layer, self.statistics, self.usable, fixed))

    def changed(self, change: Any, pair: Pair) -> Pair:
        """A change of coordinates, of what lies at the parameters."""
        weight = pair.weight
        dtype = torch.promote_types(self.at.scale.dtype, weight.dtype)
        varies = None if self.at.varies is None else _beside(self.at.varies, weight)
        at = Coordinates(_beside(self.at.mean, weight), _beside(self.at.scale, weight), varies)
        return changed(pair, self.layer.module, dtype, lambda flat: Pair(*change(*flat, at)))


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
    usable = None
    if not layer.stats.usable and not known_to_be_all(statistics.calls > 0):
        usable = usable_in(statistics, _neurons_of(layer)) if layer.parts else statistics.calls > 0
    fixed = True if grads.bias is None else None
    at = _at(layer, statistics, usable, fixed)
    made = _Coordinates(layer, parameters, grads, statistics, at, usable)
    if grads.bias is None or known_to_be_all(grads.bias != 0):
        return made
    return made.with_fixed(
        _neurons(layer.module, grads, lambda weight, bias: _any(weight != 0) & (bias == 0))
    )


def _at(layer: Layer, statistics: Statistics, usable: Any, fixed: Any) -> Coordinates:
    """The coordinates, where some neurons' bias may not move; plain where nothing is usable."""
    stats, whole = layer.stats, fixed is None or fixed is True
    known = stats.coordinates if whole and not stats.taken else {}
    at = known.get(fixed is True)
    if at is None:
        neurons = _neurons_of(layer) if layer.parts else 0
        at = coordinates_in(statistics, layer.parts, neurons, fixed, settles=stats.settles)
        # Not where that would be another array as large as the weight.
        if layer.parts == 0 and (statistics.second is at.scale or statistics.mass is None):
            known[fixed is True] = at
    if usable is None:
        return at
    mean, scale = torch.where(usable, at.mean, 0), torch.where(usable, at.scale, 1)
    return at._replace(mean=mean, scale=scale)


def _neurons_of(layer: Layer) -> int:
    return len(layout(layer.module)(layer.weight.detach()))


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


def _learns(layer: Layer, groups: dict[int, dict[str, Any]]) -> bool:
    """Whether the layer's bias does, as far as it is no matter of single neurons."""
    bias, group = layer.bias, groups.get(id(layer.bias))
    if bias is None or bias.grad is None or group is None:
        return False
    return not stands_still(group) or stands_still(groups[id(layer.weight)])


class _Saved(NamedTuple):
    """A layer's parameters and gradients, before and in the coordinates."""

    values: Pair
    grads: Pair
    inner_values: Pair
    inner_grads: Pair


def _enter(layer: _Coordinates, decay: Decays) -> _Saved:
    """Put the layer's parameters and gradients into the coordinates."""
    values = Pair(*(None if p is None else p.clone() for p in layer.parameters))
    inner_grads = layer.changed(gradient_into, layer.grads)
    if layer.usable is not None:
        usable = _beside(layer.usable, values.weight)
        inner_grads = layer.changed(
            lambda *pair: tuple(None if g is None else torch.where(usable, g, 0) for g in pair[:2]),
            inner_grads,
        )
    inner_values = Pair(None, None)
    if inner_grads.bias is not None:
        # It is that of the bias itself, in which an optimizer may write.
        inner_grads = inner_grads._replace(bias=inner_grads.bias.clone())
    if decay.beside is None:
        inner_values = layer.changed(parameters_into, values)
        if values.bias is not None:
            if not _is_zero(decay.bias):
                # The weight's decay moves the mean response, and so b~; b is to decay as asked.
                extra = decay.bias * (inner_values.bias - values.bias)
                inner_grads = inner_grads._replace(bias=inner_grads.bias + extra)
            if decay.plain_bias:
                inner_values = inner_values._replace(bias=values.bias)
    pairs = zip(layer.parameters, inner_values, inner_grads, strict=True)
    for parameter, value, grad in pairs:
        if parameter is not None:
            # Where the step does not depend on them, nothing has to be subtracted from it.
            parameter.zero_() if value is None else parameter.copy_(value)
            # The gradient itself stays as it is, for whoever looks at it after the step.
            parameter.grad = grad
    return _Saved(values, layer.grads, inner_values, inner_grads)


def _restore(layer: _Coordinates, saved: _Saved) -> None:
    for parameter, value, grad in zip(layer.parameters, saved.values, saved.grads, strict=True):
        if parameter is not None:
            parameter.copy_(value)
            parameter.grad = grad


def _is_zero(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and value == 0


def _weights(layer: _Coordinates, saved: _Saved) -> tuple[torch.Tensor, ...]:
    """(parameter, value before, gradient) of the weight, in the coordinates."""
    return layer.parameters.weight, saved.inner_values.weight, saved.inner_grads.weight


def _leave(layer: _Coordinates, saved: _Saved, decay: Decays, skipped: Any) -> None:
    """Take the step that was made out of the coordinates."""
    weight, bias = (
        p if before is None or p is None else p - before
        for p, before in zip(layer.parameters, saved.inner_values, strict=True)
    )
    shares = Pair(decay.weight, 0) if decay.beside is None else decay.beside
    if skipped is not None:
        shares = Pair(*(s if _is_zero(s) else torch.where(skipped > 0, 0, s) for s in shares))
    if decay.beside is None and not _is_zero(shares.weight):
        # Nothing makes up for what has decayed.
        weight = weight + shares.weight * saved.inner_values.weight
    still = None if bias is None else (bias == 0) & (layer.grads.bias == 0)
    if still is not None and not known_to_be_all(~still):
        # Of a neuron without a gradient now memory may move the weight, but not such a bias.
        layer = layer.with_fixed(
            _neurons(layer.layer.module, Pair(weight, still), lambda w, b: _any(w != 0) & (b != 0))
        )
    steps = layer.changed(pull_back, Pair(weight, bias))
    pairs = zip(layer.parameters, saved.values, saved.grads, steps, shares, strict=True)
    for parameter, value, grad, step, share in pairs:
        if parameter is not None:
            if not _is_zero(share):
                step = step - share * value
            parameter.copy_(value.add_(step))
            parameter.grad = grad
