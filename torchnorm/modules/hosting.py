"""Modules that multiply with a parameter by a function of PyTorch: what sees the products."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from torchnorm.modules.made import make
from torchnorm.modules.product import Product
from torchnorm.operations.derived import derived
from torchnorm.operations.products import read

PRODUCTS = "_products"
"""The attribute of a module that holds the `Product` of each of its parameters, by its name."""
USED = "_multiplies_with"
"""The attribute of a module that holds those that it multiplies with, its own or others'."""


class Hosting(nn.Module):
    """The first base of such a module, before its own class; see `torchnorm.modules.made`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's, hooks included."""
        used = self.__dict__.get(USED, ())
        if not (torch.is_grad_enabled() and any(each.records for each in used)):
            return super().__call__(*args, **kwargs)
        if any(each.parts for each in used):
            return _eagerly(super().__call__, used, args, kwargs)
        with Reader(used):
            return super().__call__(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for product in self.__dict__.get(PRODUCTS, {}).values():
            if product.neuron_stats is not None:
                product.neuron_stats.move(fn)
        return self


@torch.compiler.disable(reason="torchnorm: which sample goes to which expert is known at run time")
def _eagerly(call: Callable, used: tuple[Product, ...], args: tuple, kwargs: dict) -> Any:
    with Reader(used):
        return call(*args, **kwargs)


class Reader(TorchFunctionMode):
    """Sees every function that is called, and has those recorded that multiply with a weight."""

    def __init__(self, used: tuple[Product, ...]) -> None:
        super().__init__()
        self.used = used
        # (what was made of a weight, whose, which part, the factor)
        self.known: list[tuple[torch.Tensor, Product, Any, Any]] = []
        self.cache: dict[Any, Any] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in (*args, *kwargs.values()):
            if not isinstance(tensor, torch.Tensor):
                continue
            for product in self.used:
                # Looked up again: FSDP2 has the whole weight there only after the module's call.
                if product.module._parameters.get(product.name) is tensor:
                    return self._met(func, args, kwargs, out, tensor, product, None, None)
            for known, product, part, factor in self.known:
                if known is tensor:
                    return self._met(func, args, kwargs, out, tensor, product, part, factor)
        return out

    def _met(self, func, args, kwargs, out, tensor, product, part, factor) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = func.__self__.__name__
        reading = read(name, args, kwargs, tensor) if tensor.ndim > 1 else None
        if reading is not None:
            return product.record(reading, out, part, factor, self.cache)
        for each in derived(name, args, kwargs, tensor, out):
            which = part if each.part is None else each.part
            scale = each.factor if factor is None else factor
            if each.factor is not None and factor is not None:
                scale = factor * each.factor
            self.known.append((each.tensor, product, which, scale))
        return out


def host(module: nn.Module, product: Product, used_in: tuple[nn.Module, ...], mark: str) -> Product:
    """Give a product to the module that has the parameter, and to those that multiply with it."""
    for each in (module, *used_in):
        if mark not in vars(each):
            vars(each)[mark] = type(each)
            each.__class__ = make(Hosting, type(each))
    vars(module).setdefault(PRODUCTS, {})[product.name] = product
    for each in used_in:
        vars(each)[USED] = (*vars(each).get(USED, ()), product)
    return product
