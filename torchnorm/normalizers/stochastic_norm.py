"""Stochastic normalization: a deterministic one with the noise of BatchNorm in its parameters."""

from typing import Any, NamedTuple

import torch

from torchnorm.normalizers.batch_stats import BatchStats, initial_batch_stats
from torchnorm.normalizers.channels import (
    along,
    averaged,
    check_input,
    computed,
    count,
    moments,
    scaled,
)
from torchnorm.normalizers.checks import (
    NOT_NEGATIVE,
    SHARE,
    check_choice,
    check_count,
    check_given,
    check_knob,
    check_values,
)
from torchnorm.normalizers.normalizer import Affine


def draw_batch_noise(
    generator: torch.Generator | None,
    samples: int,
    channels: int,
    device: Any = None,
    dtype: Any = None,
) -> torch.Tensor:
    """The noise (U, V) of a batch of M normal values: V ~ N(0, 1/M), M / U^2 ~ chi^2 of M - 1.

    Args:
        generator: of the random numbers, or None for PyTorch's.
        samples: M, at least 2.
        channels: C.
        device: of the noise.
        dtype: of the noise.

    Returns:
        [2, C]: U, the deviation sigma over that of the batch, and V, the mean less that of the
        batch in units of sigma; independent in each channel.

    Raises:
        TypeError: for a number of samples that is no int.
        ValueError: for less than two.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers.stochastic_norm import draw_batch_noise
        >>> u, v = draw_batch_noise(torch.Generator().manual_seed(0), 50, 100_000)
        >>> [round(float(50 * each), 1) for each in ((v**2).mean(), (u**-2).mean())]
        [1.0, 49.0]
    """
    check_count("samples", samples, 2)
    shape = torch.full((channels,), (samples - 1) / 2, device=device, dtype=dtype)
    # torch.distributions.Gamma draws by this, too, and takes no generator.
    gamma = torch._standard_gamma  # pyright: ignore[reportPrivateImportUsage]
    chi2 = 2 * gamma(shape, generator=generator)
    v = torch.randn(channels, generator=generator, device=device, dtype=dtype) * samples**-0.5
    return torch.stack([torch.sqrt(samples / chi2), v])


def stochastic_norm(
    x: torch.Tensor,
    state: BatchStats,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    noise: torch.Tensor | None = None,
    training: bool,
    statistics: str = "running",
    momentum: float = 0.01,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[torch.Tensor, BatchStats]:
    """The function of `StochasticNorm`, which has the whole text; it changes nothing in place.

    It draws nothing: `noise` is [2, C], U and V, or None for none.

    Returns:
        y [N, C, *space] in the dtype of x, and the new state: the old one unless `training`.

    Raises:
        TypeError, ValueError: as the module.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import initial_batch_stats, stochastic_norm
        >>> x, noise = torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [0.5]])
        >>> state = initial_batch_stats(1)
        >>> y, _ = stochastic_norm(x, state, training=True, noise=noise, eps=0.0)
        >>> y[:, 0].tolist()
        [-1.0, 3.0]
    """
    check_knobs(statistics, momentum, eps)
    check_input(x, len(state.mean))
    given, x = x.dtype, computed(x)
    mean, var = (along(each, x) for each in state)
    deviation = x - mean
    if training:
        if process_group is None:
            check_values(x.shape, count(x))
        center, spread, centered = moments(x, process_group)
        pairs = zip(state, (center, spread), strict=True)
        state = BatchStats(*(averaged(old, batch, momentum) for old, batch in pairs))
        if statistics == "batch":
            var, deviation = spread, centered
    y = deviation * torch.rsqrt(var + eps)
    if noise is not None:
        check_given("noise", noise.shape, (2, x.shape[1]))
        u, v = (along(each, x) for each in noise)
        y = u * (y + v)
    return scaled(y, weight, bias).to(given), state


def check_knobs(statistics: str, momentum: float, eps: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_choice("statistics", statistics, ("running", "batch"))
    check_knob("momentum", momentum, SHARE)
    check_knob("eps", eps, NOT_NEGATIVE)


class StochasticNorm(Affine):
    """Stochastic (Bayesian) normalization: a deterministic one, and the noise of BatchNorm.

    As `jaxnorm.linen.normalizers.StochasticNorm`, which has the whole text, for x [N, C, *]:

        y = weight U ((x - mean) / sqrt(var + eps) + V) + bias
        V ~ N(0, 1/M),  M / U^2 ~ chi^2 of M - 1 degrees of freedom

    In training with the running statistics as they were before this batch, or with those of the
    batch, and noise that is drawn at every call unless it is given. In evaluation with the running
    statistics, and with noise only if it is given.

    Args:
        num_features: C.
        eps: added to variances.
        momentum: the weight of the new in the running averages, default 0.01, as in the twin; not
            None.
        affine: whether there are weight and bias, [C].
        samples: M, how many values per channel the noise is that of.
        statistics: "running" or "batch", those that normalize in training.
        generator: of the noise; None for PyTorch's. (Not with `torch.compile`.)
        bias: whether there is one if affine.
        process_group: the processes over which the batch is spread in training, such as
            ``torch.distributed.group.WORLD``; None (default): this one alone.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    State: running_mean, running_var [C]; biased, where PyTorch's BatchNorm has it unbiased. With a
    process_group the noise is each process's by itself.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for an x of less than two axes or of other channels, one value per channel in
            training, noise of another shape, knobs out of range.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.StochasticNorm(3, samples=32)
        >>> x = torch.randn(16, 3)
        >>> bool((layer(x) == layer(x)).all())
        False
        >>> layer = layer.eval()
        >>> bool((layer(x) == layer(x)).all())
        True

    References:
        Shekhovtsov, Flach, ACCV 2018, arXiv 1811.00639; the noise is from memory, see the twin.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        affine: bool = True,
        *,
        samples: int = 64,
        statistics: str = "running",
        generator: torch.Generator | None = None,
        bias: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_knobs(statistics, momentum, eps)
        check_count("samples", samples, 2)
        super().__init__(num_features, eps, momentum, affine, device, dtype, bias=bias)
        self.process_group = process_group
        self.samples, self.statistics, self.generator = samples, statistics, generator
        self.make_stats(device, dtype)
        self.reset_parameters()

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The state before any step."""
        return (initial_batch_stats(self.num_features, device, dtype),)

    def forward(self, x: torch.Tensor, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Normalize x with the noise [2, C], U and V."""
        if noise is None and self.training:
            dtype = torch.promote_types(x.dtype, torch.float32)
            noise = draw_batch_noise(
                self.generator, self.samples, self.num_features, x.device, dtype
            )
        y, new = stochastic_norm(
            x,
            self.read(BatchStats),
            self.weight,
            self.bias,
            noise=noise,
            training=self.training,
            statistics=self.statistics,
            momentum=self.momentum,
            eps=self.eps,
            process_group=self.process_group,
        )
        if self.training:
            self.write(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, samples={self.samples}, statistics={self.statistics!r}"
