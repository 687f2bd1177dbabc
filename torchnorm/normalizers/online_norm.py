"""Online Normalization: running statistics in the forward pass, a control process in the backward.

Both go through the samples of a batch one after the other. All that is sequential in them are
recurrences of one number per channel, `_recurrence`; what is done to whole samples is done to the
batch at once.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from torchnorm.normalizers.channels import (
    along,
    check_channels,
    check_choice,
    check_knob,
    computed,
    scaled,
    space_moments,
)
from torchnorm.normalizers.normalizer import Affine

#: What comes after weight and bias, against outputs that the running statistics do not fit.
GUARDS = ("activation_clamping", "layer_scaling", None)


class OnlineState(NamedTuple):
    """The running statistics of the forward pass.

    Attributes:
        mean: [C], m of the equations.
        var: [C], v.
    """

    mean: torch.Tensor
    var: torch.Tensor


class OnlineControl(NamedTuple):
    """The state of the control process in the backward pass, in units of the loss.

    Attributes:
        gradient: [C], U of the equations: what is still to be taken off the mean of the gradients.
        projection: [C], V: and off their product with the outputs.
    """

    gradient: torch.Tensor
    projection: torch.Tensor


def initial_online_state(channels: int, device: Any = None, dtype: Any = None) -> OnlineState:
    """Mean 0, variance 1."""
    to = {"device": device, "dtype": dtype}
    return OnlineState(torch.zeros(channels, **to), torch.ones(channels, **to))


def initial_online_control(channels: int, device: Any = None, dtype: Any = None) -> OnlineControl:
    """Zeros."""
    to = {"device": device, "dtype": dtype}
    return OnlineControl(torch.zeros(channels, **to), torch.zeros(channels, **to))


def online_norm(
    x: torch.Tensor,
    state: OnlineState,
    control: OnlineControl,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.001,
    eps: float = 1e-5,
    backward_momentum: float = 0.01,
    guard: str | None = "activation_clamping",
    clamp: float = 5.0,
) -> tuple[torch.Tensor, OnlineState]:
    """The function of `OnlineNorm`, which says what all of it means.

    The backward pass reads `control`, and writes what it is afterwards into it, in place.

    Returns:
        y [N, C, *space] in the dtype of x, and the new state: the old one unless `training`.

    Raises:
        TypeError, ValueError: as the module.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import (
        ...     initial_online_control, initial_online_state, online_norm
        ... )
        >>> x, state, control = torch.eye(2), initial_online_state(2), initial_online_control(2)
        >>> y, state = online_norm(x.requires_grad_(), state, control, training=True, guard=None)
        >>> y.sum().backward()
        >>> print((100 * x.grad).round(), state.mean, control.gradient.round())
        tensor([[100., 100.],
                [ 99.,  99.]]) tensor([0.0010, 0.0010]) tensor([2., 2.])
    """
    check_channels(x, state.mean.shape[0])
    check_knob("momentum", momentum, 0, 1)
    check_knob("backward_momentum", backward_momentum, 0, 1)
    check_knob("eps", eps, 0)
    check_knob("clamp", clamp, 0)
    check_choice("guard", guard, GUARDS)
    given, x = x.dtype, computed(x)
    if training:
        center, root, state = _statistics(x.detach(), state, momentum, eps)
        y: Any = _Controlled.apply(x, center, root, control, backward_momentum)
    else:
        y = (x - along(state.mean, x)) * torch.rsqrt(along(state.var, x) + eps)
    y = scaled(y, weight, bias)
    if guard == "activation_clamping":
        # At the limit itself there is no gradient either.
        y = torch.where(y.abs() < clamp, y, y.detach().clamp(-clamp, clamp))
    elif guard == "layer_scaling":
        y = y * torch.rsqrt(y.square().mean(tuple(range(1, x.ndim)), keepdim=True) + eps)
    return y.to(given), state


@torch.no_grad()
def _statistics(
    x: torch.Tensor, state: OnlineState, rate: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor, OnlineState]:
    """What each sample is centered and divided by, [N, C, 1...], and the state after the batch."""
    mean, var, _ = space_moments(x)
    shape = mean.shape
    mean, var = mean.flatten(1), var.flatten(1)
    decay = mean.new_full((), 1 - rate).expand(len(x))
    center, last_mean = _recurrence(state.mean, decay, rate * mean)
    terms = rate * (var + (1 - rate) * (mean - center).square())
    before, last_var = _recurrence(state.var, decay, terms)
    root = torch.sqrt(before + eps)
    return center.reshape(shape), root.reshape(shape), OnlineState(last_mean, last_var)


class _Controlled(torch.autograd.Function):
    """(x - center) / root, with the control process for a gradient."""

    @staticmethod
    def forward(
        x: torch.Tensor,
        center: torch.Tensor,
        root: torch.Tensor,
        control: OnlineControl,
        rate: float,
    ) -> torch.Tensor:
        return (x - center) / root

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        _, _, root, ctx.control, ctx.rate = inputs
        ctx.save_for_backward(output, root)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        y, root = ctx.saved_tensors
        control, rate = ctx.control, ctx.rate
        dims = tuple(range(2, y.ndim))

        def over_space(values: torch.Tensor) -> torch.Tensor:
            return values.mean(dims) if dims else values  # no dimensions are all to PyTorch

        # The mean over space of g' y, with g' = g - rate V y, is linear in V; and so on.
        factors = 1 - rate * over_space(y.square())
        projection, last_projection = _recurrence(control.projection, factors, over_space(g * y))
        terms = (over_space(g) - rate * projection * over_space(y)) / root.flatten(1)
        decay = terms.new_full((), 1 - rate).expand(len(y))
        gradient, last_gradient = _recurrence(control.gradient, decay, terms)
        g_x = (g - rate * projection.reshape(root.shape) * y) / root
        g_x = g_x - rate * gradient.reshape(root.shape)
        control.gradient.copy_(last_gradient)
        control.projection.copy_(last_projection)
        return g_x, None, None, None, None


def _recurrence(
    first: torch.Tensor, factors: torch.Tensor, terms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """s[t + 1] = factors[t] s[t] + terms[t], from s[0] = first: all before the last, and the last.

    One after the other: a product of the factors may overflow where no s does.
    """
    now, before = first.to(terms.dtype), []
    for factor, term in zip(factors, terms, strict=True):
        before.append(now)
        now = torch.addcmul(term, factor, now)
    return torch.stack(before), now


class OnlineNorm(Affine):
    """As `jaxnorm.linen.normalizers.OnlineNorm`, for x [N, C, *space]: Online Normalization.

    ::

        forward   y_t  = (x_t - m) / sqrt(v + eps)                   out = guard(weight y + bias)
                  v   <- (1 - a) v + a var_space(x_t) + a (1 - a) (mean_space(x_t) - m)^2
                  m   <- m + a (mean_space(x_t) - m)
        backward  g'   = g_t - b V y_t                               V <- V + mean_space(g' y_t)
                  g_x  = g' / sqrt(v + eps) - b U                    U <- U + mean_space(g_x)

    with a = momentum and b = backward_momentum, both of the new.

    The state of the backward pass, U and V, is buffers, which the backward pass writes. (JAX has no
    such thing: there it comes beside the gradients.) A backward pass that does not happen leaves
    them, a second one through the same graph goes on from the first.

    Args:
        num_features: C.
        eps: added to the variance, and in layer scaling to the second moment; default 1e-5.
        momentum: a, weight of the new statistics, in [0, 1]; default 0.001. (In JAX that of the
            old, default 0.999: the same. The paper's 1 - alpha_f.)
        affine: whether there are weight and bias; default True.
        backward_momentum: b; default 0.01. (In JAX 0.99. The paper's 1 - alpha_b.)
        guard: "activation_clamping" (default), "layer_scaling" or None, as there.
        clamp: the limit of the first, default 5.
        device: of parameters and buffers.
        dtype: of parameters and buffers. Statistics are computed in float32 at least; the output
            has the dtype of x.

    Buffers: running_mean, running_var, running_gradient (U), running_projection (V), [C].

    Raises:
        TypeError, ValueError: as there.

    Transformations: autograd once, autocast, torch.compile; `torch.func` in evaluation.
    Each process has its own states under DDP.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.OnlineNorm(3)
        >>> x = torch.randn(4, 3, 8, 8, requires_grad=True)
        >>> layer(x).square().sum().backward()
        >>> layer.running_projection.shape, bool((layer.running_projection > 0).all())
        (torch.Size([3]), True)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.001,
        affine: bool = True,
        *,
        backward_momentum: float = 0.01,
        guard: str | None = "activation_clamping",
        clamp: float = 5.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device, dtype)
        self.backward_momentum = backward_momentum
        self.guard = guard
        self.clamp = clamp
        self.make_stats(device, dtype)
        self.reset_parameters()

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The states before any step."""
        return (
            initial_online_state(self.num_features, device, dtype),
            initial_online_control(self.num_features, device, dtype),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the module to x [N, C, *space]."""
        y, new = online_norm(
            x,
            self.read(OnlineState),
            self.read(OnlineControl),
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            backward_momentum=self.backward_momentum,
            guard=self.guard,
            clamp=self.clamp,
        )
        if self.training:
            self.write(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{super().extra_repr()}, backward_momentum={self.backward_momentum}, "
            f"guard={self.guard!r}, clamp={self.clamp}"
        )
