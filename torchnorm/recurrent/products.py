"""The products of a recurrent layer: each a neuron-wise layer on a parameter of that layer."""

from typing import Any

import torch
from torch import nn

from torchnorm import checks
from torchnorm.activations import DEFERRED
from torchnorm.functional import neuronwise_linear
from torchnorm.modules.base import Neuronwise
from torchnorm.modules.recording import learns
from torchnorm.rule import Rule


class RecurrentProduct(Neuronwise):
    """z = x W^T + b on the parameters of a recurrent layer, whose state_dict is all there is."""

    owner: Any

    def __init__(self, owner: Any, name: str) -> None:
        settings: dict[str, Any] = {"rule": owner.rule, "process_group": owner.process_group}
        super().__init__(gate=DEFERRED, **settings)
        # Not registered: the owner has this module, not the other way round.
        self.__dict__["owner"], self.name = owner, name

    @property
    def _parameters(self) -> Any:  # type: ignore[override]
        """The owner's, which may become others (`to_empty`, `load_state_dict(assign=True)`)."""
        if "owner" not in self.__dict__:
            return {}
        theirs = self.owner._parameters
        names = {"weight": f"weight_{self.name}", "bias": f"bias_{self.name}"}
        return {ours: theirs.get(name) for ours, name in names.items()}

    @_parameters.setter
    def _parameters(self, value: Any) -> None:
        del value

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """[O, I]."""
        return getattr(self.owner, f"weight_{self.name}")

    @property
    def bias(self) -> Any:  # type: ignore[override]
        """[O] or None."""
        return getattr(self.owner, f"bias_{self.name}", None)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        del recurse  # the parameters are the owner's, which is changed too
        if self.neuron_stats is not None:
            self.neuron_stats.move(fn)
        return self

    def _save_to_state_dict(self, *args: Any) -> None:
        """Nothing: the owner does."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Nothing: the owner does."""

    def extra_repr(self) -> str:
        """Which of the owner's parameters."""
        return f"weight_{self.name}"

    def forward(self, x: torch.Tensor) -> Any:
        """(z [..., O], handle)."""
        return neuronwise_linear(x, self.weight, self.bias, **self.settings())


class Unfused(nn.Module):
    """The first base of every recurrent layer, before PyTorch's; not to be used by itself."""

    rule: Rule
    process_group: Any

    def __init__(
        self, *args: Any, rule: Rule = Rule(), process_group: Any = None, **kwargs: Any
    ) -> None:
        checks.check_rule(rule)
        super().__init__(*args, **kwargs)
        add_products(self, rule, process_group)

    def products(self) -> list[RecurrentProduct]:
        """One for each weight."""
        return [module for module in self.children() if isinstance(module, RecurrentProduct)]

    def is_seen(self) -> bool:
        """Whether anything is made of the gates in this pass; else PyTorch's kernel is taken."""
        if not torch.is_grad_enabled() or self.rule.gradient == "plain":
            return False
        if self.rule.gradient in ("preconditioned", "standardized"):
            return True
        return any(
            each.neuron_stats is not None and learns(each.weight) for each in self.products()
        )


def add_products(layer: Any, rule: Rule, process_group: Any) -> None:
    """Give a recurrent layer what its forward pass needs."""
    layer.rule, layer.process_group = rule, process_group
    for name in list(layer._parameters):
        if name.startswith("weight_"):
            short = name.removeprefix("weight_")
            layer.add_module(short, RecurrentProduct(layer, short))


def unfuse(
    model: nn.Module, *, rule: Rule = Rule(), process_group: Any = None
) -> dict[str, nn.Module]:
    """Let the recurrent layers of a model be those of `torchnorm.recurrent`, in place.

    PyTorch's LSTM, GRU, RNN and their cells, and no subclasses: the class changes, the parameters
    stay the same objects. Call it before the optimizer is put in coordinates.

    Args:
        model: any module.
        rule: see `torchnorm.Rule`.
        process_group: as in `torchnorm.Linear`.

    Returns:
        Name -> layer, of those that were changed; empty if there are none.

    Raises:
        TypeError: for a model or rule of another type.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.LSTM(3, 4)
        >>> list(torchnorm.recurrent.unfuse(model))
        ['']
        >>> type(model), list(model.state_dict())[0]
        (<class 'torchnorm.recurrent.layers.LSTM'>, 'weight_ih_l0')
    """
    from torchnorm.recurrent.registry import KINDS

    checks.check_rule(rule)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    changed = {name: m for name, m in model.named_modules() if type(m) in KINDS}
    for layer in changed.values():
        layer.__class__ = KINDS[type(layer)]
        add_products(layer, rule, process_group)
    return changed
