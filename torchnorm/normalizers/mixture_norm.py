"""Mixture Normalization: each sample by the Gaussians of a mixture that it may have come from."""

from typing import Any, NamedTuple

import torch

from torchnorm.normalizers.channels import (
    TINY,
    Over,
    along,
    averaged,
    check_input,
    computed,
    count,
    moments,
    over_processes,
    scaled,
    weighted_moments,
)
from torchnorm.normalizers.checks import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    check_count,
    check_given,
    check_knob,
    check_values,
)
from torchnorm.normalizers.normalizer import Affine


class Mixture(NamedTuple):
    """K Gaussians with diagonal covariances.

    Attributes:
        weight: [K], the shares lambda of the components; they sum to one.
        mean: [K, C], in units of x.
        var: [K, C], in units of x squared.
    """

    weight: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor


def initial_mixture(
    components: int, channels: int, device: Any = None, dtype: Any = None
) -> Mixture:
    """The running mixture before any batch: equal shares, mean 0, variance 1."""
    to = {"device": device, "dtype": dtype}
    return Mixture(
        torch.full((components,), 1 / components, **to),
        torch.zeros(components, channels, **to),
        torch.ones(components, channels, **to),
    )


def mixture_norm(
    x: torch.Tensor,
    state: Mixture,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool,
    steps: int = 5,
    floor: float = 1e-3,
    responsibility_gradient: bool = False,
    seeds: torch.Tensor | None = None,
    momentum: float = 0.01,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[torch.Tensor, Mixture]:
    """The function of `MixtureNorm`, which has the whole text; it changes nothing in place.

    The shape of the state says how many components there are.

    Returns:
        y [N, C, *space] in the dtype of x, and the new state: the old one unless `training`.

    Raises:
        TypeError, ValueError: as the module.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers.mixture_norm import initial_mixture, mixture_norm
        >>> x = torch.tensor([[-5.0], [-4.0], [4.0], [5.0]])
        >>> y, mixture = mixture_norm(x, initial_mixture(2, 1), training=True, momentum=1.0)
        >>> [round(v, 2) for v in mixture.mean[:, 0].tolist()]
        [-4.5, 4.5]
        >>> [round(v, 2) for v in y[:, 0].tolist()]  # each half by itself, times 1 / sqrt(1 / 2)
        [-1.41, 1.41, -1.41, 1.41]
    """
    check_knobs(len(state.weight), steps, floor, momentum, eps)
    check_input(x, state.mean.shape[1])
    given, x = x.dtype, computed(x)
    if not training:
        used = Mixture(*(each.to(x.dtype) for each in state))
        center = (used.weight[:, None] * used.mean).sum(0)
        apart = used.mean - center
        spread = (used.weight[:, None] * (used.var + apart**2)).sum(0)
        deviation, fitted = x - along(center, x), used._replace(mean=apart)
        share = _responsibilities(deviation, fitted, spread, floor, eps)
    else:
        if process_group is None:
            check_values(x.shape, count(x))
        over = over_processes(x, process_group)
        center, spread, deviation = moments(x, process_group)
        center, spread = center.reshape(-1), spread.reshape(-1)
        with torch.set_grad_enabled(responsibility_gradient and torch.is_grad_enabled()):
            mixture = _begin(len(state.weight), spread, center, seeds)
            for _ in range(steps):
                share = _responsibilities(deviation, mixture, spread, floor, eps)
                mixture = _fit(deviation, share, over)
            share = _responsibilities(deviation, mixture, spread, floor, eps)
        fitted = _fit(deviation, share, over)
        new = fitted._replace(mean=fitted.mean + center)
        pairs = zip(state, new, strict=True)
        state = Mixture(*(averaged(old, batch, momentum) for old, batch in pairs))
    y = torch.zeros_like(x)
    for k in range(len(fitted.weight)):
        part = deviation - along(fitted.mean[k], x)
        part = part * along(torch.rsqrt(fitted.var[k] + eps), x)
        y = y + (share[k] * torch.rsqrt(fitted.weight[k] + TINY))[:, None] * part
    return scaled(y, weight, bias).to(given), state


def check_knobs(components: int, steps: int, floor: float, momentum: float, eps: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_count("components", components, 1)
    check_count("steps", steps, 0)
    check_knob("floor", floor, POSITIVE)
    check_knob("momentum", momentum, SHARE)
    check_knob("eps", eps, NOT_NEGATIVE)


def _begin(
    components: int, spread: torch.Tensor, center: torch.Tensor, seeds: torch.Tensor | None
) -> Mixture:
    """Where EM begins: means spread over the batch in all channels at once, or given."""
    if seeds is None:
        middles = (torch.arange(components, device=spread.device).to(spread) + 0.5) / components
        scores = torch.special.ndtri(middles)
        # A channel without spread would have an endless derivative of the root.
        root = torch.sqrt(torch.where(spread > 0, spread, 1))
        mean = scores[:, None] * torch.where(spread > 0, root, 0)
    else:
        check_given("seeds", tuple(seeds.shape), (components, *center.shape))
        mean = seeds.to(spread.dtype) - center
    weight = spread.new_full((components,), 1 / components)
    return Mixture(weight, mean, spread.expand(mean.shape))


def _responsibilities(
    deviation: torch.Tensor, mixture: Mixture, spread: torch.Tensor, floor: float, eps: float
) -> torch.Tensor:
    """The E step, p(k|x), [K, N, *space], in units of each channel's spread.

    So no channel is louder than another, and the floor means the same to all.
    """
    unit = spread + eps
    logarithms = []
    for weight, mean, var in zip(*mixture, strict=True):
        relative = var / unit + floor
        square = (deviation - along(mean, deviation)) ** 2
        square = square / along(unit * relative, deviation)
        logarithm = torch.log(weight + TINY) - (square.sum(1) + torch.log(relative).sum()) / 2
        logarithms.append(logarithm)
    return torch.softmax(torch.stack(logarithms), 0)


def _fit(deviation: torch.Tensor, share: torch.Tensor, over: Over) -> Mixture:
    """The M step: shares, means and variances of the components."""
    each = (weighted_moments(deviation, weight, over) for weight in share)
    return Mixture(*map(torch.stack, zip(*each, strict=True)))


class MixtureNorm(Affine):
    """Mixture Normalization: by the Gaussians of a mixture that is fitted to the mini-batch.

    As `jaxnorm.linen.normalizers.MixtureNorm`, which has the whole text, for x [N, C, *]. With the
    responsibilities ``p(k|x_i)`` of K Gaussians with diagonal covariances, of the vectors [C] of
    all examples and positions:

        nu_ki = p(k|x_i) / sum_i p(k|x_i)        lambda_k = mean_i p(k|x_i)
        mean_k = sum_i nu_ki x_i                 var_k = sum_i nu_ki (x_i - mean_k)^2
        xhat_i = sum_k p(k|x_i) / sqrt(lambda_k) (x_i - mean_k) / sqrt(var_k + eps)
        y = weight xhat + bias

    In training the mixture is fitted by a fixed number of steps of EM without random numbers, and
    its running averages move; in evaluation they are used.

    Args:
        num_features: C.
        eps: added to variances.
        momentum: the weight of the new in the running averages, default 0.01, as in the twin; not
            None.
        affine: whether there are weight and bias, [C].
        components: K.
        steps: of EM in training; 0 for the responsibilities of the beginning.
        floor: added to the components' variances within EM, in units of the channel's variance.
        responsibility_gradient: whether gradients flow through the responsibilities, and EM.
        bias: whether there is one if affine.
        process_group: the processes over which the batch is spread in training, such as
            ``torch.distributed.group.WORLD``; None (default): this one alone.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    State: running_weight [K], running_mean, running_var [K, C]; biased variances.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for an x of less than two axes or of other channels, one value per channel in
            training, seeds of another shape, knobs out of range.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.MixtureNorm(1, components=2)
        >>> x = torch.cat([torch.linspace(-6, -4, 9), torch.linspace(4, 6, 9)])[:, None]
        >>> y = layer(x).detach()
        >>> round(abs(float(y[:9].mean())), 4), round(float(y[:9].var(correction=0)), 3)
        (0.0, 2.0)

    References:
        Kalayeh, Shah, TPAMI 2019, arXiv 1806.02892; the formula is from memory, see the twin.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        affine: bool = True,
        *,
        components: int = 2,
        steps: int = 5,
        floor: float = 1e-3,
        responsibility_gradient: bool = False,
        bias: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_knobs(components, steps, floor, momentum, eps)
        super().__init__(num_features, eps, momentum, affine, device, dtype, bias=bias)
        self.process_group = process_group
        self.components, self.steps, self.floor = components, steps, floor
        self.responsibility_gradient = responsibility_gradient
        self.make_stats(device, dtype)
        self.reset_parameters()

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The state before any step."""
        return (initial_mixture(self.components, self.num_features, device, dtype),)

    def forward(self, x: torch.Tensor, *, seeds: torch.Tensor | None = None) -> torch.Tensor:
        """Normalize x; `seeds` [K, C] are the means where EM begins, in units of x."""
        y, new = mixture_norm(
            x,
            self.read(Mixture),
            self.weight,
            self.bias,
            training=self.training,
            steps=self.steps,
            floor=self.floor,
            responsibility_gradient=self.responsibility_gradient,
            seeds=seeds,
            momentum=self.momentum,
            eps=self.eps,
            process_group=self.process_group,
        )
        if self.training:
            self.write(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{super().extra_repr()}, components={self.components}, steps={self.steps}, "
            f"floor={self.floor}, responsibility_gradient={self.responsibility_gradient}"
        )
