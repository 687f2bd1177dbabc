"""Mode Normalization: samples that a learned gate puts together are normalized together."""

from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.normalizers.refusals import check_count, check_given, check_knob
from torchnorm.normalizers.running import RunningStatistics
from torchnorm.normalizers.samples import TINY, Samples, affine, rows_of, running


class Modes(NamedTuple):
    """The statistics of K modes.

    Attributes:
        mean: [K, C], in units of x.
        var: [K, C], in units of x squared.
    """

    mean: torch.Tensor
    var: torch.Tensor


def initial_modes(modes: int, channels: int, device: Any = None, dtype: Any = None) -> Modes:
    """The running statistics before any batch: mean 0, variance 1."""
    to = {"device": device, "dtype": dtype}
    return Modes(torch.zeros(modes, channels, **to), torch.ones(modes, channels, **to))


def mode_norm(
    x: torch.Tensor,
    state: Modes,
    gate_weight: torch.Tensor,
    gate_bias: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[torch.Tensor, Modes]:
    """See `ModeNorm`: the function behind the module, which changes nothing in place.

    Args:
        x: [N, C, *].
        state: the running statistics; their shape says how many modes there are.
        gate_weight: [K, C].
        gate_bias: [K].
        weight: [C] or None.
        bias: [C] or None.
        training: False evaluates; the state comes back as it was.
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
        >>> from torchnorm.normalizers.mode_norm import initial_modes, mode_norm
        >>> x = torch.tensor([[-5.0], [-3.0], [3.0], [5.0]])
        >>> gate = torch.tensor([[-9.0], [9.0]])  # by the sign of x, all but surely
        >>> y, modes = mode_norm(x, initial_modes(2, 1), gate, torch.zeros(2), momentum=1.0)
        >>> modes.mean[:, 0].tolist(), [round(v, 1) for v in y[:, 0].tolist()]
        ([-4.0, 4.0], [-1.0, 1.0, -1.0, 1.0])
    """
    modes, channels = state.mean.shape
    check_knobs(momentum, eps)
    check_given("gate_weight", tuple(gate_weight.shape), (modes, channels))
    check_given("gate_bias", tuple(gate_bias.shape), (modes,))
    rows, restore = rows_of(x, channels)
    # Not a product of matrices, which autocast would take to bfloat16.
    logits = (rows.mean(1)[:, None] * gate_weight.to(rows.dtype)).sum(-1)
    gates = torch.softmax(logits + gate_bias.to(rows.dtype), -1)
    wide = Modes(*(each.to(rows.dtype) for each in state))
    if not training:
        center = wide.mean.mean(0)
        batch = wide._replace(mean=wide.mean - center)
        deviation = rows - center
    else:
        samples = Samples(rows, process_group)
        center = samples.mean(rows)
        deviation = rows - center  # so that large means cost no digits
        batch = _statistics(deviation, gates, samples)
        mean = batch.mean + center
        # The running averages of x and of x^2, of which the published variance is the difference:
        # the same number, without the difference.
        between = (momentum * (1 - momentum) * (wide.mean - mean) ** 2).detach()
        state = running(state, batch._replace(mean=mean), momentum)
        state = state._replace(var=state.var + between.to(state.var.dtype))
    out = torch.zeros_like(rows)
    for k in range(modes):
        part = (deviation - batch.mean[k]) * torch.rsqrt(batch.var[k] + eps)
        out = out + gates[:, k, None, None] * part
    return restore(affine(out, weight, bias)).to(x.dtype), state


def check_knobs(momentum: float, eps: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_knob("momentum", momentum, "a number in [0, 1]", lambda value: 0 <= value <= 1)
    check_knob("eps", eps, "a number >= 0", lambda value: value >= 0)


def _statistics(deviation: torch.Tensor, gates: torch.Tensor, samples: Samples) -> Modes:
    """Mean and variance of each mode, of samples weighted by their gates."""
    means, variances = [], []
    for k in range(gates.shape[1]):
        gate = gates[:, k, None, None]
        mass = samples.total(gate.sum()) * deviation.shape[1] + TINY
        mean = samples.sum(gate * deviation) / mass
        square = samples.sum(gate * (deviation - mean) ** 2)
        means.append(mean)
        variances.append(square / mass)
    return Modes(torch.stack(means), torch.stack(variances))


class ModeNorm(RunningStatistics):
    """Mode Normalization: a learned gate puts samples into modes, each with statistics of its own.

    As `jaxnorm.linen.normalizers.ModeNorm`, which has the whole text, for x [N, C, *]. With
    positions p and K modes:

        g_n = softmax(gate_weight mean_p(x_n) + gate_bias)                     [K]
        N_k = sum_n g_nk
        mean_k = 1/N_k sum_n g_nk mean_p x_np
        var_k = 1/N_k sum_n g_nk mean_p (x_np - mean_k)^2
        y_np = weight sum_k g_nk (x_np - mean_k) / sqrt(var_k + eps) + bias

    In training by these, with gradients through all of them, and running averages of x and x^2
    move; in evaluation they are used, with the gates of x.

    Args:
        num_features: C.
        eps: added to variances.
        momentum: the weight of the new in the running averages, default 0.1; not None.
        affine: whether there are weight and bias, [C].
        modes: K.
        bias: whether there is one if affine.
        process_group: the processes over which the batch is spread in training, such as
            ``torch.distributed.group.WORLD``; None (default): this one alone.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Parameters: weight, bias, gate_weight [K, C] (1/K + 0.01 N(0, 1) at first), gate_bias [K] (0).
    State: running_mean, running_var [K, C].

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for an x of less than two axes or of other channels, one value per channel in
            training, knobs out of range.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.ModeNorm(3, modes=2)
        >>> layer(torch.randn(8, 3, 5, 5)).shape, layer.running_mean.shape
        (torch.Size([8, 3, 5, 5]), torch.Size([2, 3]))

    References:
        Deecke, Murray, Bilen, ICLR 2019, arXiv 1810.05466, and the authors' code, see the twin.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        modes: int = 2,
        bias: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_knobs(momentum, eps)
        check_count("modes", modes, 1)
        initial = initial_modes(modes, num_features, device, dtype)
        super().__init__(num_features, initial, eps, momentum, affine, bias, device, dtype)
        self.process_group = process_group
        self.modes = modes
        gate = torch.empty(modes, num_features, device=device, dtype=dtype)
        self.gate_weight = nn.Parameter(gate)
        self.gate_bias = nn.Parameter(torch.zeros(modes, device=device, dtype=dtype))
        nn.init.normal_(self.gate_weight, 1 / modes, 0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x."""
        y, new = mode_norm(
            x,
            self.running(),
            self.gate_weight,
            self.gate_bias,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            process_group=self.process_group,
        )
        if self.training:
            self.store(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, modes={self.modes}"
