"""Mode Normalization: samples that a learned gate puts together are normalized together."""

from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.normalizers.channels import (
    Over,
    along,
    averaged,
    check_input,
    computed,
    count,
    moments,
    over_processes,
    positions,
    scaled,
    weighted_moments,
)
from torchnorm.normalizers.checks import (
    NOT_NEGATIVE,
    SHARE,
    check_count,
    check_given,
    check_knob,
    check_values,
)
from torchnorm.normalizers.normalizer import Affine


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
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> tuple[torch.Tensor, Modes]:
    """The function of `ModeNorm`, which has the whole text; it changes nothing in place.

    The shape of the state says how many modes there are.

    Returns:
        y [N, C, *space] in the dtype of x, and the new state: the old one unless `training`.

    Raises:
        TypeError, ValueError: as the module.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers.mode_norm import initial_modes, mode_norm
        >>> x = torch.tensor([[-5.0], [-3.0], [3.0], [5.0]])
        >>> gate = torch.tensor([[-9.0], [9.0]])  # by the sign of x, all but surely
        >>> y, modes = mode_norm(
        ...     x, initial_modes(2, 1), gate, torch.zeros(2), training=True, momentum=1.0
        ... )
        >>> modes.mean[:, 0].tolist(), [round(v, 1) for v in y[:, 0].tolist()]
        ([-4.0, 4.0], [-1.0, 1.0, -1.0, 1.0])
    """
    modes, channels = state.mean.shape
    check_knobs(momentum, eps)
    check_given("gate_weight", gate_weight.shape, (modes, channels))
    check_given("gate_bias", gate_bias.shape, (modes,))
    check_input(x, channels)
    given, x = x.dtype, computed(x)
    # Not a product of matrices, which autocast would take to bfloat16.
    pooled = x.reshape(len(x), channels, positions(x)).mean(-1)  # (of no rows, too)
    logits = (pooled[:, None] * gate_weight.to(x.dtype)).sum(-1)
    gates = torch.softmax(logits + gate_bias.to(x.dtype), -1)
    shares = gates.T.reshape(modes, len(x), *(1,) * (x.ndim - 2))
    used = Modes(*(each.to(x.dtype) for each in state))
    if not training:
        center = used.mean.mean(0)
        batch = used._replace(mean=used.mean - center)
        deviation = x - along(center, x)
    else:
        if process_group is None:
            check_values(x.shape, count(x))
        over = over_processes(x, process_group)
        # Without its mean, so that a large one costs no digits.
        center, _, deviation = moments(x, process_group)
        batch = _statistics(deviation, shares, over)
        mean = batch.mean + center.reshape(-1)
        # The running averages of x and of x^2, of which the published variance is the difference:
        # the same number, without the difference.
        var = averaged(used.var, batch.var, momentum)
        var = var + momentum * (1 - momentum) * (used.mean - mean).detach() ** 2
        state = Modes(averaged(state.mean, mean, momentum), var.to(state.var.dtype))
    y = torch.zeros_like(x)
    for k in range(modes):
        part = deviation - along(batch.mean[k], x)
        part = part * along(torch.rsqrt(batch.var[k] + eps), x)
        y = y + shares[k][:, None] * part
    return scaled(y, weight, bias).to(given), state


def check_knobs(momentum: float, eps: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_knob("momentum", momentum, SHARE)
    check_knob("eps", eps, NOT_NEGATIVE)


def _statistics(deviation: torch.Tensor, shares: torch.Tensor, over: Over) -> Modes:
    """Mean and variance of each mode, of samples weighted by their gates."""
    each = (weighted_moments(deviation, share, over)[1:] for share in shares)
    return Modes(*map(torch.stack, zip(*each, strict=True)))


class ModeNorm(Affine):
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

    gate_weight: torch.Tensor
    gate_bias: torch.Tensor

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
        super().__init__(num_features, eps, momentum, affine, device, dtype, bias=bias)
        self.process_group = process_group
        self.modes = modes
        for name, shape in (("gate_weight", (modes, num_features)), ("gate_bias", (modes,))):
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))
        self.make_stats(device, dtype)
        self.reset_parameters()

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The state before any step."""
        return (initial_modes(self.modes, self.num_features, device, dtype),)

    def reset_parameters(self) -> None:
        """The initial states and parameters."""
        super().reset_parameters()
        nn.init.normal_(self.gate_weight, 1 / self.modes, 0.01)
        nn.init.zeros_(self.gate_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x."""
        y, new = mode_norm(
            x,
            self.read(Modes),
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
            self.write(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, modes={self.modes}"
