"""The change of coordinates of one layer: gradients into it, steps back out of it. Pure algebra.

Per neuron, z = w.x + b = w~.x~ + b~ with x~ = (x - mean) / sigma, w~ = sigma w, b~ = b + mean.w.
Everything, biases too, broadcasts against the weight, whose first axis is the neurons.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

#: What PyTorch has for lists of tensors, of which pyright does not know.
foreach: Any = torch

#: The types of tensors of which PyTorch's own functions take many at once.
PLAIN = (torch.Tensor, torch.nn.Parameter)


class Moments(NamedTuple):
    """Each neuron's input moments; everything broadcasts against the weight.

    Attributes:
        center: about which the sums were taken, per channel of x, [C].
        mean: where the inputs are centered.
        offset: mean - center, apart because the difference of two large numbers has lost it.
        sigma: what they are divided by.
        varies: above 0 where the inputs do; the rest has no gradient in the coordinates.
    """

    center: torch.Tensor
    mean: torch.Tensor
    offset: torch.Tensor
    sigma: torch.Tensor
    varies: torch.Tensor

    @property
    def coordinates(self) -> "Coordinates":
        """What of them changes the coordinates."""
        return Coordinates(self.mean, 1 / self.sigma, self.varies)


class Coordinates(NamedTuple):
    """What changes the coordinates; everything broadcasts against the weight.

    Attributes:
        mean: see `Moments`.
        scale: 1 / sigma: products are cheaper than quotients.
        varies: see `Moments`; None where all are known to.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    varies: torch.Tensor | None


def zero_unless(flags: torch.Tensor, values: torch.Tensor, *, above: float = 0) -> torch.Tensor:
    """The values where the flags (or numbers) are above something, or NaN; 0 elsewhere."""
    if _in_one_pass(flags, values):
        return torch.ops.aten.threshold_backward(values, flags, above)
    return torch.where(flags <= above, 0, values)


def zero_where_zero(flags: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The values, but 0 where the flags are exactly 0."""
    if _in_one_pass(flags, values):
        return torch.ops.aten.threshold_backward(values, flags.abs(), 0)
    return torch.where(flags == 0, 0, values)


def _in_one_pass(flags: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether derivatives of activations do what a comparison and a `where` do.

    Without branches: on a CPU, where flags come in no order, a `where` takes 40 times as long. Not
    compiled: that is one pass anyway, and sharded tensors do not know these.
    """
    alike = flags.dtype == values.dtype and not hasattr(flags, "device_mesh")
    return alike and not torch.compiler.is_compiling()


def standardized(centered_gradient: torch.Tensor, at: Coordinates) -> torch.Tensor:
    """dL/dw~ = (g_W - mean g_b) / sigma; dL/db~ is g_b itself."""
    scaled = centered_gradient * at.scale
    return scaled if at.varies is None else zero_unless(at.varies, scaled)


def pull_back(
    step: torch.Tensor, bias_step: torch.Tensor | None, at: Coordinates
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A step in the new coordinates as one of the parameters: (dW, db).

    dW = dw~ / sigma, db = db~ - sum_i mean dW.
    """
    weight_step = step * at.scale
    if bias_step is None:
        return weight_step, None
    return weight_step, bias_step - _mean_response(weight_step, at)


def gradient_into(
    g_w: torch.Tensor, g_b: torch.Tensor | None, at: Coordinates
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The plain gradient as that in the coordinates; where |mean| / sigma is large, g_W cancels.

    An entry whose plain gradient is exactly 0 is not learning (frozen, pruned, masked), and has
    none here either.
    """
    centered = g_w if g_b is None else torch.addcmul(g_w, at.mean, g_b, value=-1)
    return zero_where_zero(g_w, standardized(centered, at)), g_b


def parameters_into(
    weight: torch.Tensor, bias: torch.Tensor | None, at: Coordinates
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(w~, b~)."""
    new = weight / at.scale
    if bias is None:
        return new, None
    return new, bias + _mean_response(weight, at)


def _mean_response(weight: torch.Tensor, at: Coordinates) -> torch.Tensor:
    """The sum of mean times weight over all that feeds one neuron."""
    response = _over_inputs(at.mean * weight)
    if _known_to_be_finite(response):
        return response
    # A mean of 0 moves nothing, not even where the weight is NaN (0 NaN would be NaN).
    return _over_inputs(zero_where_zero(at.mean, at.mean * weight))


def _over_inputs(values: torch.Tensor) -> torch.Tensor:
    """The sum over all that feeds one neuron."""
    return values.sum(tuple(range(1, values.ndim)), keepdim=True)


def gradients_into(
    g_w: Sequence[torch.Tensor], g_b: Sequence[torch.Tensor | None], at: Sequence[Coordinates]
) -> list[torch.Tensor]:
    """`gradient_into` of several layers at once, with few operators: those of their weights."""
    centered = list(g_w)
    places = [place for place, bias in enumerate(g_b) if bias is not None]
    if places:
        each: Any = [(g_w[place], at[place].mean, g_b[place]) for place in places]
        moved = foreach._foreach_addcmul(*map(list, zip(*each, strict=True)), value=-1)
        for place, value in zip(places, moved, strict=True):
            centered[place] = value
    scales = [each.scale for each in at]
    if len(places) == len(centered):
        foreach._foreach_mul_(centered, scales)
    else:
        centered = foreach._foreach_mul(centered, scales)
    flags = foreach._foreach_abs(list(g_w))
    some = [
        (f, a.varies.to(f.dtype)) for f, a in zip(flags, at, strict=True) if a.varies is not None
    ]
    if some:
        foreach._foreach_minimum_(*map(list, zip(*some, strict=True)))
    return list(map(zero_unless, flags, centered))


def pull_back_(
    steps: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    at: Sequence[Coordinates],
    fixed: Sequence[torch.Tensor | None],
) -> None:
    """`pull_back` of several layers at once, with few operators and in place.

    A bias of which a flag says that it is fixed has a mean of 0; of None all means are as they are.
    """
    foreach._foreach_mul_(list(steps), [each.scale for each in at])
    each = [
        (step, here.mean, bias, flag)
        for step, bias, here, flag in zip(steps, biases, at, fixed, strict=True)
        if bias is not None
    ]
    if not each:
        return
    moved, means, shifted, flags = map(list, zip(*each, strict=True))
    products = foreach._foreach_mul(moved, means)
    responses = list(map(_over_inputs, products)) if all(map(at_hand, products)) else []
    flat = [response.flatten() for response in responses]
    if not (flat and _known_to_be_finite(torch.cat(flat))):
        # (The flags of derivatives are compared with 0: so much is what `abs` is for.)
        magnitudes = foreach._foreach_abs(means)
        responses = [
            _over_inputs(zero_unless(mean, product))
            for mean, product in zip(magnitudes, products, strict=True)
        ]
    if any(flag is not None for flag in flags):
        responses = _zero_where(flags, responses)
    foreach._foreach_sub_(shifted, responses)


def _zero_where(flags: list[Any], values: list[torch.Tensor]) -> list[torch.Tensor]:
    """The values [O, 1, ...] of all layers, 0 where a flag says so."""
    flat = torch.cat([value.flatten() for value in values])
    flat.masked_fill_(torch.cat([flag.flatten() for flag in flags]), 0)
    each = flat.split([value.numel() for value in values])
    return [one.view(value.shape) for one, value in zip(each, values, strict=True)]


def known_to_be_all(flags: torch.Tensor) -> bool:
    """Whether all are true, as far as that is known without waiting for a device."""
    return at_hand(flags) and bool(flags.all())


def known_to_be_above(values: torch.Tensor, least: float) -> bool:
    """Whether all are, likewise."""
    return at_hand(values) and (not values.numel() or float(values.detach().amin()) > least)


def _known_to_be_finite(values: torch.Tensor) -> bool:
    # (The largest of all is NaN, if one is.)
    return at_hand(values) and (not values.numel() or float(values.abs().amax()) < math.inf)


def at_hand(values: torch.Tensor) -> bool:
    """Whether the values can be read without waiting for a device."""
    # (To ask a tensor for what it has not takes long.)
    if not values.is_cpu or (type(values) not in PLAIN and hasattr(values, "device_mesh")):
        return False
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
