"""In a watched pass: what is made of each parameter, and where it is multiplied with.

Whatever is linear in a weight is followed: changes of layout, casts, parts of it, multiples.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.weak import TensorWeakRef

from torchnorm.compat import hook_on_saved_tensors
from torchnorm.operations.derived import PERMUTES, Derived, derived
from torchnorm.operations.layout import Layout
from torchnorm.operations.linear import LinearOperation
from torchnorm.operations.products import Contraction, read


@dataclass
class Chain:
    """A tensor that was made of a parameter.

    Attributes:
        root: the id of the parameter.
        reference: the tensor.
        layout: how it lies, parts first.
        parts: of how many parts of the parameter it is one; 0 for all of it.
        gathered: whether it is some of them, one for each sample.
        scaled: whether it was multiplied by a number.
        factors: the values of such as were tensors.
        sums: the values of the sums with something else that it went through.
        calls: the modules that were running when it was made, one stack for each step.
    """

    root: int
    reference: Any
    layout: Layout
    parts: int = 0
    gathered: bool = False
    scaled: bool = False
    factors: tuple[Any, ...] = ()
    sums: tuple[Any, ...] = ()
    calls: tuple[tuple[Any, ...], ...] = ()


@dataclass
class Use:
    """One product with a parameter.

    Attributes:
        chain: of the weight.
        name: of the function.
        contraction: how it multiplies, of a dense product.
        operation: of a convolution.
        z: the value that it returns.
        bias: the chain of what is added in the same call, if that is one.
        constant: whether something else is.
        calls: the modules that were running.
        saving: see `saving`.
    """

    chain: Chain
    name: str
    contraction: Contraction | None
    operation: LinearOperation
    z: Any
    bias: Chain | None
    constant: bool
    calls: tuple[Any, ...]
    saving: Any


@dataclass
class Added:
    """One sum with what was made of a parameter."""

    chain: Chain
    other: Any  # the value of the other operand
    out: Any


@dataclass
class Other:
    """What is done to a parameter besides."""

    chain: Chain
    name: str
    outs: list[Any]


@dataclass
class Uses:
    """All that is done to one parameter."""

    products: list[Use] = field(default_factory=list)
    sums: list[Added] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)


class Weights:
    """Watches what is done to the parameters of a model."""

    def __init__(self) -> None:
        self.chains: dict[int, Chain] = {}
        self.uses: dict[int, Uses] = {}

    def begin(self, parameters: Iterable[torch.Tensor]) -> None:
        """Watch these."""
        for parameter in parameters:
            layout = Layout(tuple(parameter.shape))
            self.chains[id(parameter)] = Chain(id(parameter), TensorWeakRef(parameter), layout)
            self.uses[id(parameter)] = Uses()

    def forget(self) -> None:
        """Drop all that was found."""
        self.chains.clear()
        self.uses.clear()

    def chain(self, tensor: Any) -> Chain | None:
        """What a tensor was made of, if of a parameter."""
        found = self.chains.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None
        return found if found is not None and found.reference() is tensor else None

    def _is_made(self, x: torch.Tensor) -> bool:
        """Whether x is a parameter, or was made of one, and is no data."""
        chain = self.chain(x)
        return chain is not None and not chain.sums

    def see(
        self,
        tape: Any,
        func: Any,
        name: str,
        args: tuple,
        kwargs: dict,
        given: list[torch.Tensor],
        ins: list[Any],
        out: Any,
    ) -> None:
        """Look at one call, to which these tensors were given, which were these values."""
        taken = list({id(t): (t, v) for t, v in zip(given, ins, strict=True)}.values())
        mine = [(t, chain) for t, _ in taken if (chain := self.chain(t)) is not None]
        made = [t for t in _flat(out) if t.requires_grad]
        if not mine or not made:
            return
        name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        calls, seen = tuple(tape.stack), []
        for tensor, chain in mine:
            reading = read(name, args, kwargs, tensor) if tensor.ndim > 1 else None
            if reading is not None and len(made) == 1 and not self._is_made(reading.x):
                bias = self.chain(reading.bias)
                use = Use(
                    chain,
                    name,
                    reading.contraction,
                    reading.operation,
                    tape.value(made[0]),
                    bias,
                    reading.bias is not None and bias is None,
                    calls,
                    saving(),
                )
                self.uses[chain.root].products.append(use)
                seen += [chain] if bias is None else [chain, bias]
        for tensor, chain in mine:
            if any(chain is each for each in seen):
                continue
            uses, others = self.uses[chain.root], [v for t, v in taken if t is not tensor]
            found = derived(name, args, kwargs, tensor, out)
            new = [_next(chain, each, func, name, args, kwargs, calls, others) for each in found]
            if found and all(each.tensor is tensor for each in found):
                continue
            known = bool(new) and None not in new
            if name in ("add", "__add__", "__radd__", "__iadd__") and len(others) == 1:
                total = tape.value(made[0])
                uses.sums.append(Added(chain, others[0], total))
                known = known and tensor.ndim > 1
                new = [replace(each, sums=(*chain.sums, total)) for each in new if each and known]
            elif not known:
                uses.others.append(Other(chain, name, [tape.value(t) for t in made]))
            for each, following in zip(found, new, strict=False) if known else ():
                if following is not None:
                    self.chains[id(each.tensor)] = following


def saving() -> tuple[Any, bool]:
    """What decides whether, and by whom, this part of a pass is kept for the backward pass."""
    return hook_on_saved_tensors(), torch.is_grad_enabled()


def _flat(out: Any) -> list[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        return [out]
    return [t for each in out for t in _flat(each)] if isinstance(out, tuple | list) else []


def _next(
    chain: Chain,
    each: Derived,
    func: Any,
    name: str,
    args: tuple,
    kwargs: dict,
    calls: tuple,
    others: list,
) -> Chain | None:
    """The chain of what was derived; None if it cannot be followed."""
    new = replace(chain, reference=TensorWeakRef(each.tensor), calls=(*chain.calls, calls))
    shape, layout = tuple(each.tensor.shape), chain.layout
    if each.mask is not None:
        values = each.mask
        known = values.device.type != "meta" and not hasattr(values, "fake_mode")
        binary = known and bool(((values == 0) | (values == 1)).all())
        return new if binary else None
    if each.factor is not None:
        return replace(new, factors=(*chain.factors, *others), scaled=True)
    if each.part is not None:
        return None if chain.parts else _of_part(new, each.part, shape)
    if name in PERMUTES:
        # The axes, whatever the arguments are called: from sizes that tell them apart.
        meta = torch.empty(tuple(range(2, 2 + each.tensor.ndim)), device="meta")
        axes = tuple(size - 2 for size in func(meta, *args[1:], **kwargs).shape)
        if chain.parts:
            axes = (0, *(axis + 1 for axis in axes))
        return replace(new, layout=layout.permuted(axes))
    before = layout.now()[1:] if chain.parts else layout.now()
    if shape == before or (chain.gathered and shape[1:] == before):
        return new
    if chain.gathered:
        return None
    changed = layout.reshaped((chain.parts, *shape) if chain.parts else shape)
    return None if changed is None else replace(new, layout=changed)


def _of_part(chain: Chain, part: Any, shape: tuple[int, ...]) -> Chain | None:
    now = chain.layout.now()
    if isinstance(part, torch.Tensor) and part.ndim:
        return replace(chain, parts=now[0], gathered=True)
    if shape == now[1:]:
        return replace(chain, parts=now[0])
    if shape[1:] != now[1:]:  # of chunks
        return None
    parts = now[0] // shape[0]
    layout = chain.layout.reshaped((parts, *shape))
    return None if layout is None else replace(chain, layout=layout, parts=parts)
