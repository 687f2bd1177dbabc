"""Batch Normalization Preconditioning as published, for any optimizer of torch.optim."""

import math
from typing import Any

import torch
from torch import nn

from torchnorm.optim.batches import Inputs
from torchnorm.optim.layers import Pair
from torchnorm.optim.preconditioner import (
    Averages,
    Preconditioner,
    all_finite,
    check_number,
)


def bnp(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    rho: float = 0.99,
    eps1: float = 1e-2,
    eps2: float = 1e-4,
    *,
    per_channel: bool = False,
) -> torch.optim.Optimizer:
    """Batch Normalization Preconditioning (BNP): algorithm 2 of Lange, Helfrich & Ye.

        mu <- rho mu + (1 - rho) mu_B          mu_B, var_B: of the layer's inputs in this batch
        var <- rho var + (1 - rho) var_B       (biased); mu starts as 0, var as 1
        s^2 = var + eps1 max_i(var) + eps2     q^2 = max(I / N, 1): I inputs, N samples
        g_W <- (g_W - mu g_b) / (q^2 s^2)
        g_b <- g_b / q^2 - sum_i mu g_W        with the new g_W

    The gradients are replaced when `step` is called, before the optimizer sees them. As published:
    before SGD with momentum. Not with Adam and its like, which undo the scale but not the shift:
    for them `in_neuron_coordinates`, rule `BNP`.

    The structure (a preconditioner of the layer's own moments, with bias, dense and convolutional)
    and the change of the gradient are those of the paper. From memory, so to be checked against the
    paper before they are quoted: the defaults of rho, eps1, eps2, the starting values, the form of
    s^2 and of q^2, and for convolutions all but the fact that patches are the samples.

    Convolutions: an input is a channel at a tap of the window, a sample an image and a position,
    zero padding samples of value 0; I and N count them so in q^2.

    Args:
        optimizer: of `torch.optim`, for any parameters of the model, but not LBFGS.
        model: any, converted or not. Its dense and (transposed) convolutional layers are taken, of
            exactly these classes or ours, whose weights the optimizer learns; hooks on them gather
            the inputs in the backward pass. Fused attention, which does not call its layers, and
            all other parameters are left alone.
        rho: the share of the old in the running mean and variance, in [0, 1).
        eps1: relative to the largest variance of what feeds the neuron, >= 0.
        eps2: absolute, unit of x^2, >= 0.
        per_channel: for convolutions one mean and variance for all taps of a channel: those of all
            that the taps read.

    Returns:
        The same optimizer. Gradients accumulated over micro-batches have their inputs as one batch;
        what was gathered is forgotten with the gradients (``zero_grad(set_to_none=True)``), but not
        at weights with a hook of ``register_post_accumulate_grad_hook``, which may put them
        elsewhere. Gathered is what makes the weights' gradients, not a gradient by the input.
        Without a bias that is learned nothing can absorb a mean: mu is 0, var the second moment.
        The state_dict has one more entry, ``"bnp"``. A layer whose weight or bias becomes another
        parameter, or is computed from others (pruning), is left alone from then on, with a warning.
        `torchnorm.optim.remove` takes all off again; so does the end of the optimizer.

    Raises:
        TypeError: for another type of optimizer or model, or what is no number.
        ValueError: for a rho, eps1 or eps2 out of range, LBFGS, an optimizer that runs another, in
            neuron coordinates or with BNP already, one with none of the layers' weights, layers
            that adapt the gradient themselves, two layers with one weight; in `step`, where a layer
            with a gradient was not called since the last, and for more than one process; in
            `load_state_dict`, for a state_dict without BNP or of another model.

    Transformations: checkpointing, autocast, torch.compile of the model behind this call. Not for
    second derivatives: `torch.autograd.grad` by the weights is gathered like a backward pass.
    Dtypes: computed and kept in at least float32. A copy of the model has hooks that do nothing.

    Example:
        >>> import torch, torchnorm
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.arange(8.0).reshape(8, 1) + 5, torch.arange(8.0).reshape(8, 1)
        >>> model = torch.nn.Linear(1, 1)
        >>> optimizer = torchnorm.optim.bnp(
        ...     torch.optim.SGD(model.parameters(), lr=0.2), model, rho=0.9)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = ((model(x) - y) ** 2).mean()
        ...     loss.backward()
        ...     optimizer.step()
        >>> bool(loss < 1e-6)  # SGD at its best rate, 0.0125: 1.5
        True

    References:
        Lange, Helfrich, Ye, JMLR 23(72), 2022, arXiv 2108.01110.
    """
    check_number("rho", rho, "a number in [0, 1), the share of the old", lambda rho: 0 <= rho < 1)
    for name, value in (("eps1", eps1), ("eps2", eps2)):
        check_number(name, value, "a finite number >= 0", lambda value: value >= 0)

    def change(inputs: Inputs, gradient: Pair, averages: Averages | None) -> tuple[Pair, Averages]:
        moments = _of_batch(inputs, per_channel)
        if averages is None:
            averages = {
                "mean": torch.zeros_like(moments[0]),
                "variance": torch.ones_like(moments[1]),
            }
        finite = all_finite(*moments)
        mean, variance = (
            torch.where(finite, rho * old + (1 - rho) * new, old)
            for old, new in zip(averages.values(), moments, strict=True)
        )
        axes = tuple(range(1, variance.ndim))
        square = variance + eps1 * variance.amax(axes, keepdim=True) + eps2
        q_square = max(math.prod(gradient.weight.shape[1:]) / inputs.samples, 1)
        weight, bias = gradient
        if bias is not None:
            weight = weight - mean * bias
        weight = weight / (q_square * square)
        if bias is not None:
            bias = bias / q_square - (mean * weight).sum(axes, keepdim=True)
        return Pair(weight, bias), {"mean": mean, "variance": variance}

    Preconditioner("bnp", optimizer, model, "uniform", change)
    return optimizer


def _of_batch(inputs: Inputs, per_channel: bool) -> Any:
    """Mean and variance of the layer's inputs; 0 and the second moment without a bias."""
    mean, variance = inputs.mean, inputs.second / inputs.mass
    taps = tuple(range(2, mean.ndim))
    if per_channel and taps:
        channel = mean.mean(taps, keepdim=True)
        variance = (variance + (mean - channel) ** 2).mean(taps, keepdim=True)
        mean = channel
    return mean, variance
