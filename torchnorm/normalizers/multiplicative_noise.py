"""Multiplicative noise that is always on, and the normalization that comes of it."""

import math
from typing import Any

import torch
from torch import nn

from torchnorm.checks import check_floating, check_inputs, check_matrix
from torchnorm.normalizers.refusals import check_choice, check_given, check_knob
from torchnorm.normalizers.samples import TINY

#: The distributions of the noise.
BERNOULLI, NORMAL = "bernoulli", "normal"


def noise_variance(rate: float) -> float:
    """The variance rate / (1 - rate) of the noise, whose mean is 1."""
    return rate / (1 - rate)


def draw_multiplicative_noise(
    generator: torch.Generator | None,
    shape: tuple[int, ...],
    rate: float = 0.5,
    distribution: str = BERNOULLI,
    device: Any = None,
    dtype: Any = None,
) -> torch.Tensor:
    """Noise of mean 1 and variance rate / (1 - rate).

    Args:
        generator: of the random numbers, or None for PyTorch's.
        shape: of the noise.
        rate: in [0, 1); the probability of a 0 if Bernoulli.
        distribution: "bernoulli", 0 or 1 / (1 - rate), or "normal".
        device: of the noise.
        dtype: of the noise.

    Returns:
        The noise.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers.multiplicative_noise import draw_multiplicative_noise
        >>> noise = draw_multiplicative_noise(torch.Generator().manual_seed(0), (100_000,))
        >>> round(float(noise.mean()), 1), round(float(noise.var()), 1)
        (1.0, 1.0)
    """
    check_noise(rate, distribution)
    to = {"device": device, "dtype": dtype}
    if distribution == NORMAL:
        return 1 + math.sqrt(noise_variance(rate)) * torch.randn(shape, generator=generator, **to)
    return torch.empty(shape, **to).bernoulli_(1 - rate, generator=generator) / (1 - rate)


def multiplicative_noise(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """See `MultiplicativeNoise`: x times noise of the same shape.

    Args:
        x: activations.
        noise: in their shape.

    Returns:
        In the shape and dtype of x.

    Raises:
        TypeError: for an x that is not floating.
        ValueError: for noise of another shape.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers.multiplicative_noise import multiplicative_noise
        >>> multiplicative_noise(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0])).tolist()
        [2.0, 0.0]
    """
    check_floating(x=x)
    check_given("noise", tuple(noise.shape), tuple(x.shape))
    return x * noise.to(x.dtype)


def noisy_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    noise: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    rate: float = 0.5,
    threshold: bool = False,
) -> torch.Tensor:
    """See `DropConnect`: the function behind the module.

    Args:
        x: [..., I].
        weight: [O, I].
        noise: [O, I], of mean 1 and variance rate / (1 - rate).
        scale: [O], beta, or None: the mean of the weights is not changed.
        bias: [O] or None.
        rate: of the noise.
        threshold: return the sign, with the derivative of its mean.

    Returns:
        [..., O].

    Raises:
        TypeError: for tensors that are not floating, a rate that is no number.
        ValueError: for shapes that do not fit, a rate out of range.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers.multiplicative_noise import noisy_linear
        >>> weight, noise = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]])
        >>> noisy_linear(torch.ones(1, 2), weight, noise).tolist()
        [[2.0]]
    """
    check_dense(x, weight, rate, normalized=threshold or scale is not None)
    check_given("noise", tuple(noise.shape), tuple(weight.shape))
    dtype = torch.promote_types(x.dtype, weight.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    x_wide, w = x.to(wide), weight.to(wide)
    factor = noise.to(wide)
    if scale is not None:
        factor = factor + _shift(scale.to(wide), rate)[:, None]
    z = x_wide @ (w * factor).T
    if bias is not None:
        z = z + bias.to(wide)
    if threshold:
        mean = 2 * positive_probability(x_wide, w, scale, bias, rate=rate) - 1
        sign = torch.where(z >= 0, 1, -1).to(wide)
        z = sign + (mean - mean.detach())
    return z.to(dtype)


def positive_probability(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    rate: float = 0.5,
) -> torch.Tensor:
    """The probability that the neurons of `DropConnect` are positive, over the noise.

        P = 1/2 (1 + erf(E z / sqrt(2 var z))),  var z = rate / (1 - rate) sum_i x_i^2 W_oi^2

    Exact for normal noise; for Bernoulli noise what the central limit theorem makes of many inputs.
    Without a bias it is the same for c W as for W, for every c > 0, and for c x.

    Args:
        x: [..., I].
        weight: [O, I].
        scale: [O] or None, as in `noisy_linear`.
        bias: [O] or None.
        rate: of the noise, in (0, 1).

    Returns:
        [..., O].

    Raises:
        TypeError: for tensors that are not floating, a rate that is no number.
        ValueError: for shapes that do not fit, a rate out of range.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers.multiplicative_noise import positive_probability
        >>> x, weight = torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, 1.0]])
        >>> [round(float(positive_probability(x, c * weight)), 4) for c in (1, 1000)]
        [0.7365, 0.7365]
    """
    check_dense(x, weight, rate, normalized=True)
    wide = torch.promote_types(x.dtype, torch.float32)
    x, w = x.to(wide), weight.to(wide)
    mean = x @ w.T
    if scale is not None:
        mean = mean * (1 + _shift(scale.to(wide), rate))
    if bias is not None:
        mean = mean + bias.to(wide)
    square = noise_variance(rate) * (x**2 @ (w**2).T)
    return (1 + torch.erf(mean * torch.rsqrt(2 * square + TINY))) / 2


def check_noise(rate: float, distribution: str = BERNOULLI) -> None:
    """Raise an error for a knob that is out of range."""
    check_knob("rate", rate, "a number in [0, 1)", lambda value: 0 <= value < 1)
    check_choice("distribution", distribution, (BERNOULLI, NORMAL))


def check_dense(x: torch.Tensor, weight: torch.Tensor, rate: float, *, normalized: bool) -> None:
    """Raise an error for inputs that do not fit."""
    check_floating(x=x, weight=weight)
    check_matrix("weight", tuple(weight.shape), "[O, I]")
    check_inputs(tuple(x.shape), weight.shape[1])
    check_noise(rate)
    if normalized and rate == 0:
        raise ValueError(
            "rate: got 0, expected a number > 0 where the noise normalizes; without noise leave "
            "out scale and threshold"
        )


def _shift(scale: torch.Tensor, rate: float) -> torch.Tensor:
    """What is added to the noise so that the mean of z is `scale` in units of its deviation."""
    return scale * math.sqrt(2 * noise_variance(rate)) - 1


class MultiplicativeNoise(nn.Module):
    """Multiplies activations by noise of mean 1, in training and in evaluation.

    As `jaxnorm.linen.normalizers.MultiplicativeNoise`, which has the whole text.

        y = x xi,    E xi = 1,  var xi = rate / (1 - rate)

    Args:
        rate: in [0, 1).
        distribution: "bernoulli", Dropout that is never off, or "normal".
        generator: of the noise; None for PyTorch's. (Not with `torch.compile`.)

    Raises:
        TypeError: for an x that is not floating, a rate that is no number.
        ValueError: for noise of another shape than x, a rate or distribution out of range.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.MultiplicativeNoise(0.5).eval()
        >>> sorted(set(layer(torch.ones(10_000)).tolist()))
        [0.0, 2.0]

    References:
        As `DropConnect`.
    """

    def __init__(
        self,
        rate: float = 0.5,
        *,
        distribution: str = BERNOULLI,
        generator: torch.Generator | None = None,
    ) -> None:
        check_noise(rate, distribution)
        super().__init__()
        self.rate, self.distribution, self.generator = rate, distribution, generator

    def forward(self, x: torch.Tensor, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply x by the noise, which is drawn unless it is given."""
        check_floating(x=x)
        if noise is None:
            noise = draw_multiplicative_noise(
                self.generator, tuple(x.shape), self.rate, self.distribution, x.device, x.dtype
            )
        return multiplicative_noise(x, noise)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.rate}, distribution={self.distribution!r}"


class DropConnect(nn.Module):
    """A dense layer whose weights are multiplied by noise, in training and in evaluation.

    As `jaxnorm.linen.normalizers.DropConnect`, which has the whole text and the derivation:

        z_o = sum_i (xi_oi + a_o) W_oi x_i + b_o,    a_o = scale_o sqrt(2 v) - 1
        E xi = 1,  var xi = v = rate / (1 - rate)
        P(z_o > 0) = 1/2 (1 + erf(scale_o sum_i W_oi x_i / sqrt(sum_i W_oi^2 x_i^2)))     b = 0

    It normalizes itself: the noise grows with the weights, so P does not know how long W_o is.

    Args:
        in_features: I.
        out_features: O.
        rate: in [0, 1).
        distribution: "bernoulli" or "normal".
        threshold: return the sign of z, with the derivative of its mean 2 P - 1.
        scale: whether the mean is shifted by a_o.
        bias: whether there is one.
        generator: of the noise; None for PyTorch's. (Not with `torch.compile`.)
        device: of the parameters.
        dtype: of the parameters.

    Parameters: weight [O, I] and bias [O], at first as `nn.Linear` has them (Flax's are others),
    scale [O], at first 1. The noise, [O, I], is drawn at every call, the same for all samples.

    Raises:
        TypeError: for an x that is not floating, a rate that is no number.
        ValueError: for an x or noise that does not fit, a rate or distribution out of range.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.DropConnect(8, 200, threshold=True)
        >>> sorted(set(layer(torch.ones(8)).tolist()))
        [-1.0, 1.0]

    References:
        Detorakis et al., NeurIPS 2019, arXiv 1910.12316, see the twin.
    """

    scale: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rate: float = 0.5,
        distribution: str = BERNOULLI,
        threshold: bool = False,
        scale: bool = True,
        bias: bool = True,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_noise(rate, distribution)
        super().__init__()
        to = {"device": device, "dtype": dtype}
        linear = nn.Linear(in_features, out_features, bias, **to)
        self.weight, self.bias = linear.weight, linear.bias
        self.register_parameter(
            "scale", nn.Parameter(torch.ones(out_features, **to)) if scale else None
        )
        self.rate, self.distribution = rate, distribution
        self.threshold, self.generator = threshold, generator

    def forward(self, x: torch.Tensor, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the layer with the noise [O, I], which is drawn unless it is given."""
        weight = self.weight
        if noise is None:
            shape = tuple(weight.shape)
            noise = draw_multiplicative_noise(
                self.generator, shape, self.rate, self.distribution, weight.device, weight.dtype
            )
        return noisy_linear(
            x, weight, noise, self.scale, self.bias, rate=self.rate, threshold=self.threshold
        )

    def extra_repr(self) -> str:
        """The arguments."""
        outputs, inputs = self.weight.shape
        return (
            f"{inputs}, {outputs}, rate={self.rate}, distribution={self.distribution!r}, "
            f"threshold={self.threshold}"
        )
