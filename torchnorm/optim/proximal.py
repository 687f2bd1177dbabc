"""A proximal regularizer for small batches, for any optimizer of torch.optim."""

from typing import Any

import torch

from torchnorm.normalizers.refusals import check_count, check_knob
from torchnorm.optim.hooks import before_step, handles
from torchnorm.optim.refusals import check_optimizer

#: Of the hooks, and of the entry in the optimizer's state_dict.
NAME = "proximal"


def proximal(
    optimizer: torch.optim.Optimizer, rho: float, every: int = 100, decay: float = 0.0
) -> torch.optim.Optimizer:
    """A proximal term: parameters are held near where they lately were.

    As `jaxnorm.proximal`, which has the whole text.

        loss + rho/2 |theta - anchor|^2:    g <- g + rho (theta - anchor)
        anchor <- decay anchor + (1 - decay) theta         before every `every`-th step

    In neuron coordinates it is called first, and `in_neuron_coordinates` or `prepare` after it.
    The gradients are replaced when `step` is called, before the optimizer sees them. A parameter
    without a gradient has no term in that step.

    Args:
        optimizer: of `torch.optim`.
        rho: >= 0, in units of the loss per squared unit of a parameter. 0 changes nothing.
        every: how many steps the anchor stands, an int >= 1, default 100.
        decay: the weight of the old anchor, in [0, 1), default 0: it moves to the parameters.

    Returns:
        The same optimizer; its state_dict has the anchors as "proximal", in at least float32, one
        for each parameter, in order. `torchnorm.optim.remove` takes it off again.

    Raises:
        TypeError: for another type of optimizer, a knob that is no number.
        ValueError: for a knob out of range, an optimizer that runs another, is in neuron
            coordinates, or has a proximal term already; for a state_dict without or of others.

    Example:
        >>> import torch, torchnorm
        >>> theta = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torchnorm.optim.proximal(torch.optim.SGD([theta], lr=1.0), 0.5)
        >>> for _ in range(3):  # a slope of -1: without it 1, 2, 3
        ...     theta.grad = torch.tensor([-1.0])
        ...     optimizer.step()
        ...     print(theta.tolist())
        [1.0]
        [1.5]
        [1.75]

    References:
        As `jaxnorm.proximal`: no published method of this name was found.
    """
    check_optimizer(optimizer, NAME)
    check_proximal(rho, every, decay)
    if NAME in handles(optimizer):
        raise ValueError(f"optimizer: got one with {NAME} already, expected another")
    term = _Proximal(optimizer, rho, every, decay)
    before_step(optimizer, NAME, term.adapt)
    handles(optimizer)[NAME] += [
        optimizer.register_state_dict_post_hook(term.save),
        optimizer.register_load_state_dict_pre_hook(term.load),
    ]
    return optimizer


def check_proximal(rho: float, every: int, decay: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_knob("rho", rho, "a number >= 0", lambda value: value >= 0)
    check_count("every", every, 1)
    check_knob("decay", decay, "a number in [0, 1)", lambda value: 0 <= value < 1)
    if every == 1 and decay == 0:
        raise ValueError(
            "every: got 1 with decay 0, expected more steps or a decay > 0; an anchor that moves "
            "to the parameters before every step holds nothing"
        )


class _Proximal:
    """The anchors of an optimizer's parameters."""

    def __init__(self, optimizer: Any, rho: float, every: int, decay: float) -> None:
        self.rho, self.every, self.decay, self.count = rho, every, decay, 0
        self.anchors: dict[torch.Tensor, torch.Tensor] = {}
        with torch.no_grad():
            for parameter in _parameters(optimizer):
                self.anchors[parameter] = _wide(parameter).clone()

    def adapt(self, optimizer: Any) -> None:
        """Add the term to the gradients."""
        due = self.count % self.every == 0
        for parameter in _parameters(optimizer):
            # Of a group that was added since.
            anchor = self.anchors.setdefault(parameter, _wide(parameter).clone())
            if due:
                anchor.copy_(self.decay * anchor + (1 - self.decay) * _wide(parameter))
            grad = parameter.grad
            if grad is not None:
                term = self.rho * (_wide(parameter) - anchor)
                parameter.grad = (_wide(grad) + term).to(grad.dtype)
        self.count += 1

    def save(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The count and the anchors, in order, in the optimizer's state_dict."""
        anchors = [self.anchors[each].clone() for each in _parameters(optimizer)]
        return state_dict | {NAME: {"count": self.count, "anchors": anchors}}

    def load(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Strictly."""
        if NAME not in state_dict:
            raise ValueError(
                f"state_dict: got one without {NAME!r}, expected that of an optimizer with "
                f"torchnorm.optim.{NAME}"
            )
        state, parameters = state_dict[NAME], _parameters(optimizer)
        shapes = [tuple(each.shape) for each in parameters]
        found = [tuple(each.shape) for each in state["anchors"]]
        if found != shapes:
            raise ValueError(
                f"state_dict: got anchors of shapes {found}, expected {shapes}; it is of another "
                "model"
            )
        self.count = state["count"]
        for parameter, anchor in zip(parameters, state["anchors"], strict=True):
            self.anchors[parameter] = _wide(anchor).to(parameter.device, copy=True)
        return {name: value for name, value in state_dict.items() if name != NAME}


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
