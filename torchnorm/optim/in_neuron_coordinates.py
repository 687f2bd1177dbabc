"""Any optimizer in the neurons' coordinates."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from torchnorm.compiling import uncompiled, uncompiled_alone
from torchnorm.optim import layer_statistics, one_by_one, together
from torchnorm.optim.decay import Decays, decays_of
from torchnorm.optim.hooks import handles
from torchnorm.optim.layer_coordinates import LayerCoordinates, coordinates_of, with_fixed_biases
from torchnorm.optim.layer_statistics import Layer, Layers, Merging
from torchnorm.optim.layers import check_model
from torchnorm.optim.one_by_one import Saved
from torchnorm.optim.refusals import (
    check_needs_gradients_only,
    check_optimizer,
    check_state,
    warn_clipped,
)
from torchnorm.optim.wrapped_class import check_step, start_anew, wrap
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

    Before the step the gradients of a layer's weight and bias may only be scaled alike
    (`torch.nn.utils.clip_grad_norm_` of all parameters), not clipped entry by entry
    (`clip_grad_value_`) or one parameter at a time: then the mean is not what ``g_W - mean g_b``
    takes away, and training diverges. The first step warns where the entries of several layers are
    cut off at one value.

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
        ``set_to_none=False``, in a compiled model or under FSDP2). A loop that sets ``p.grad`` to
        None itself, to add it up elsewhere, looks the same: let a hook of
        ``p.register_post_accumulate_grad_hook`` do it, at whose weights only `zero_grad` of the
        optimizer and `step` forget. A pass whose samples have no part in the gradient of the
        weight (it is frozen, or another's by `torch.func.functional_call`) is not recorded.
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


# Compiled are the inner step and what is computed of many layers; the rest is bookkeeping.
@uncompiled_alone
def _take_step(optimizer: Any, owner: Layers, inner_step: Callable[[], Any]) -> None:
    """The inner optimizer's step, in the coordinates."""
    groups, active, gathered = _begin(optimizer, owner)
    merged = {} if not gathered else layer_statistics.merged(gathered)
    merged, parts = _coordinates(optimizer, owner, groups, active, merged)
    # GradScaler leaves it to a fused optimizer to skip a step: a tensor, above 0 if so.
    skipped = getattr(optimizer, "found_inf", None)
    saved: list[list[Saved]] = []
    if not owner.checked:
        warn_clipped([layer.grads for _, layers, _ in parts for layer in layers])
    try:
        for form, layers, decays in parts:
            saved.append(form.enter(layers, decays))
        inner_step()
        if not owner.checked and parts:
            _check(optimizer, parts, saved)
            owner.checked = skipped is None
    except BaseException:
        for (_, layers, _), before in zip(parts, saved, strict=False):
            one_by_one.restore(layers, before)
        raise
    for (form, layers, decays), before in zip(parts, saved, strict=True):
        form.leave(layers, before, decays, skipped)
    owner.keep(merged, skipped)


#: How layers are taken (`together` or `one_by_one`), which, and their decays.
_Part = tuple[Any, list[LayerCoordinates], list[Decays]]


@uncompiled
def _begin(optimizer: Any, owner: Layers) -> tuple[dict[int, Any], list[Layer], dict[str, Merging]]:
    """The group of each parameter, the layers that are to be stepped, and what is to be merged."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    start_anew(optimizer, owner.leave_changed())
    return groups, *owner.active(set(groups))


@uncompiled
def _coordinates(
    optimizer: Any,
    owner: Layers,
    groups: dict[int, Any],
    active: list[Layer],
    new: dict[str, Statistics],
) -> tuple[dict[str, Statistics], list[_Part]]:
    """The statistics of the layers that are to be stepped, and these."""
    merged = {layer.name: new.get(layer.name, layer.stats.values) for layer in active}
    layers = [coordinates_of(owner.layers[name], each, groups) for name, each in merged.items()]
    return merged, list(_parts(layers, _decays(optimizer, owner, layers, groups)))


@uncompiled
def _check(optimizer: Any, parts: list[_Part], saved: list[list[Saved]]) -> None:
    """Raise a ValueError where the optimizer keeps parameters."""
    check_state(
        optimizer,
        (
            one_by_one.inner_weight(layer, before)
            for (_, *part), saved_part in zip(parts, saved, strict=True)
            for layer, decay, before in zip(*part, saved_part, strict=True)
            # (Where the parameters are not needed, the trial has shown that none are kept.)
            if decay.beside is None
        ),
    )


def _decays(
    optimizer: Any, owner: Layers, layers: list[LayerCoordinates], groups: dict[int, Any]
) -> list[Decays]:
    """What the decay of each layer's parameters asks for, found once for each pair of groups."""
    known: dict[tuple[int, ...], Decays] = {}
    found = []
    for layer in layers:
        key = tuple(id(groups.get(id(parameter))) for parameter in layer.parameters)
        if key not in known:
            known[key] = decays_of(optimizer, owner, layer.parameters, groups)
        found.append(known[key])
    return found


def _parts(layers: list[LayerCoordinates], decays: list[Decays]) -> Iterator[_Part]:
    """The layers, as they are taken together."""
    fit = [together.fits(*pair) for pair in zip(layers, decays, strict=True)]
    # (What cannot be looked at costs less together.)
    unseen = [fits and layer.unseen for fits, layer in zip(fit, layers, strict=True)]
    layers = with_fixed_biases(layers, unseen)
    pairs = list(zip(layers, decays, strict=True))
    for chunk in together.chunks(pair for pair, fits in zip(pairs, fit, strict=True) if fits):
        yield together, [layer for layer, _ in chunk], [decay for _, decay in chunk]
    for (layer, decay), fits in zip(pairs, fit, strict=True):
        if not fits:
            yield one_by_one, [layer], [decay]
