"""Mixture Normalization: each sample by the Gaussians of a mixture that it may have come from."""

from typing import Any, NamedTuple

import torch

from torchnorm.normalizers.refusals import check_count, check_given, check_knob
from torchnorm.normalizers.running import RunningStatistics
from torchnorm.normalizers.samples import TINY, Samples, affine, rows_of, running


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
    training: bool = True,
    steps: int = 5,
    floor: float = 1e-3,
    responsibility_gradient: bool = False,
    seeds: torch.Tensor | None = None,
    momentum: float = 0.01,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[torch.Tensor, Mixture]:
    """See `MixtureNorm`: the function behind the module, which changes nothing in place.

    Args:
        x: [N, C, *].
        state: the running mixture; its shape says how many components there are.
        weight: [C] or None.
        bias: [C] or None.
        training: False evaluates; the state comes back as it was.
        steps: of EM.
        floor: of a component's variance within EM, in units of the channel's.
        responsibility_gradient: whether gradients flow through the responsibilities.
        seeds: [K, C], means where EM begins, in units of x.
        momentum: the weight of the new.
        eps: added to variances.
        process_group: the processes over which the batch is spread, or None.

    Returns:
        (y, new state).

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for shapes that do not fit, knobs out of range, one value per channel.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers.mixture_norm import initial_mixture, mixture_norm
        >>> x = torch.tensor([[-5.0], [-4.0], [4.0], [5.0]])
        >>> y, mixture = mixture_norm(x, initial_mixture(2, 1), momentum=1.0)
        >>> [round(v, 2) for v in mixture.mean[:, 0].tolist()]
        [-4.5, 4.5]
        >>> [round(v, 2) for v in y[:, 0].tolist()]  # each half by itself, times 1 / sqrt(1 / 2)
        [-1.41, 1.41, -1.41, 1.41]
    """
    check_knobs(len(state.weight), steps, floor, momentum, eps)
    rows, restore = rows_of(x, state.mean.shape[1])
    wide = Mixture(*(each.to(rows.dtype) for each in state))
    if not training:
        center = (wide.weight[:, None] * wide.mean).sum(0)
        deviation = rows - center
        apart = wide.mean - center
        spread = (wide.weight[:, None] * (wide.var + apart**2)).sum(0)
        fitted = wide._replace(mean=apart)
        share = _responsibilities(deviation, fitted, spread, floor, eps)
    else:
        samples = Samples(rows, process_group)
        center = samples.mean(rows)
        deviation = rows - center
        spread = samples.mean(deviation**2)
        with torch.set_grad_enabled(responsibility_gradient and torch.is_grad_enabled()):
            mixture = _begin(len(state.weight), spread, center, seeds)
            for _ in range(steps):
                share = _responsibilities(deviation, mixture, spread, floor, eps)
                mixture = _fit(deviation, share, samples)
            share = _responsibilities(deviation, mixture, spread, floor, eps)
        fitted = _fit(deviation, share, samples)
        state = running(state, fitted._replace(mean=fitted.mean + center), momentum)
    rows = torch.zeros_like(deviation)
    for k in range(len(fitted.weight)):
        part = (deviation - fitted.mean[k]) * torch.rsqrt(fitted.var[k] + eps)
        rows = rows + (share[k] * torch.rsqrt(fitted.weight[k] + TINY))[..., None] * part
    return restore(affine(rows, weight, bias)).to(x.dtype), state


def check_knobs(components: int, steps: int, floor: float, momentum: float, eps: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_count("components", components, 1)
    check_count("steps", steps, 0)
    check_knob("floor", floor, "a number > 0", lambda value: value > 0)
    check_knob("momentum", momentum, "a number in [0, 1]", lambda value: 0 <= value <= 1)
    check_knob("eps", eps, "a number >= 0", lambda value: value >= 0)


def _begin(
    components: int, spread: torch.Tensor, center: torch.Tensor, seeds: torch.Tensor | None
) -> Mixture:
    """Where EM begins: means spread over the batch in all channels at once, or given."""
    if seeds is None:
        middles = (torch.arange(components).to(spread) + 0.5) / components
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
    """The E step, p(k|x), [K, samples, positions], in units of each channel's spread.

    So no channel is louder than another, and the floor means the same to all.
    """
    unit = spread + eps
    logarithms = []
    for weight, mean, var in zip(*mixture, strict=True):
        relative = var / unit + floor
        square = (deviation - mean) ** 2 / (unit * relative)
        logarithm = torch.log(weight + TINY) - (square.sum(-1) + torch.log(relative).sum()) / 2
        logarithms.append(logarithm)
    return torch.softmax(torch.stack(logarithms), 0)


def _fit(deviation: torch.Tensor, share: torch.Tensor, samples: Samples) -> Mixture:
    """The M step: shares, means and variances of the components."""
    weight, means, variances = [], [], []
    for each in share:
        mass = samples.total(each.sum()) + TINY
        mean = samples.sum(each[..., None] * deviation) / mass
        square = samples.sum(each[..., None] * (deviation - mean) ** 2)
        weight.append(mass / samples.count)
        means.append(mean)
        variances.append(square / mass)
    return Mixture(torch.stack(weight), torch.stack(means), torch.stack(variances))


class MixtureNorm(RunningStatistics):
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
        initial = initial_mixture(components, num_features, device, dtype)
        super().__init__(num_features, initial, eps, momentum, affine, bias, device, dtype)
        self.process_group = process_group
        self.components, self.steps, self.floor = components, steps, floor
        self.responsibility_gradient = responsibility_gradient

    def forward(self, x: torch.Tensor, *, seeds: torch.Tensor | None = None) -> torch.Tensor:
        """Normalize x; `seeds` [K, C] are the means where EM begins, in units of x."""
        y, new = mixture_norm(
            x,
            self.running(),
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
            self.store(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{super().extra_repr()}, components={self.components}, steps={self.steps}, "
            f"floor={self.floor}, responsibility_gradient={self.responsibility_gradient}"
        )
