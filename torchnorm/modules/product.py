"""A weight with which a module multiplies in its own forward pass, by a function of PyTorch."""

from typing import Any

import torch
from torch import nn

from torchnorm import masks
from torchnorm.activations import DEFERRED, Gate, gate_slope
from torchnorm.backward.deferred import handle_of, tell_gate
from torchnorm.backward.linear_operation import record
from torchnorm.backward.parts import record_parts
from torchnorm.modules.recording import Recording
from torchnorm.operations.layout import Layout
from torchnorm.operations.products import Reading
from torchnorm.rule import Rule
from torchnorm.statistics.parts import stacked, unstacked
from torchnorm.statistics.tracked import Statistics


class Product(Recording):
    """One parameter of a module, as a layer of its own.

    Args:
        module: that has the parameter.
        weight: its name.
        bias: the module and the name of the parameter that is added to the product, or None.
        layout: how the weight lies.
        added: whether the bias is added by another call than the product.
        suffix: what is put behind the module's name, where it has several such parameters.
        gate: the activation that follows.
        rule: see `Rule`.
        process_group: as in `Linear`.
    """

    def __init__(
        self,
        module: nn.Module,
        weight: str,
        bias: tuple[nn.Module, str] | None,
        *,
        layout: Layout,
        added: bool,
        suffix: str,
        gate: Gate,
        rule: Rule,
        process_group: Any,
    ) -> None:
        self.module, self.name, self.of_bias = module, weight, bias
        self.layout, self.added = layout, added
        self.suffix, self.gate, self.rule = suffix, gate, rule
        self.process_group = process_group
        #: A hook of a deferred layer, see `torchnorm.conversion.wiring`.
        self.take: Any = None

    def own_pair(self) -> tuple[Any, Any]:
        """The weight and the bias, None where it has none."""
        weight, bias = self._parameters.values()
        return weight, bias

    @property
    def _parameters(self) -> dict[str, Any]:
        weight, bias = self.module._parameters.get(self.name), None
        if self.of_bias is not None:
            module, name = self.of_bias
            bias = module._parameters.get(name)
        return {"weight": weight, "bias": bias}

    @property
    def training(self) -> bool:  # type: ignore[override]
        """The module's."""
        return self.module.training

    @property
    def parts(self) -> int:
        """Of how many weights it is made (experts); 0 for one that is not."""
        return self.layout.parts

    @property
    def groups(self) -> int:
        """Of a convolution."""
        return self.layout.groups

    @property
    def records(self) -> bool:
        """Whether anything has to be done at its products."""
        return self.neuron_stats is not None or self.take is not None

    def parameters(self) -> Any:
        """Those of the module itself."""
        return self.module.parameters(recurse=False)

    def neurons_first(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as [O, I, ...]; the neurons of one part after those of another."""
        return self.layout(weight)

    def as_stored(self, weight: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return self.layout.back(weight)

    def one_matrix(self) -> torch.Tensor:
        """One weight as [O, I, ...], without its values."""
        return self.own_pair()[0].detach().new_empty(()).expand(self.layout.neurons)

    def empty_statistics(self) -> Statistics:
        """Those before the first step."""
        one = super().empty_statistics()
        return stacked([one] * self.parts) if self.parts else one

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "neuron_stats"}

    def record(
        self, reading: Reading, z: torch.Tensor, part: Any, factor: Any, cache: dict
    ) -> torch.Tensor:
        """z, of which the statistics will be taken.

        Args:
            reading: of the call that has computed z.
            z: its result.
            part: of which part the weight was; None for all, [S] for one of each row.
            factor: what the weight was multiplied by, or None.
            cache: for one forward pass.
        """
        if id(self) not in cache:
            cache[id(self)] = self._statistics() if torch.is_grad_enabled() else None
        statistics = cache[id(self)]
        if statistics is None and self.gate is not DEFERRED:
            return z
        x = reading.x if factor is None else reading.x * factor
        flat = z
        if reading.contraction is not None:
            x = reading.contraction.take(x, reading.contraction.x)
            flat = reading.contraction.take(z, reading.contraction.z)
        if isinstance(part, torch.Tensor) and part.ndim:
            # Rows of one part each: as many for each entry.
            part = part.repeat_interleave(x.shape[1])
            x, flat = x.flatten(0, 1), flat.flatten(0, 1)
        u = self._with_bias(flat.detach(), part, reading.ends) if self.added else flat.detach()
        out, handle = self._recorded(flat, x, reading, statistics, part, cache)
        if self.gate is not DEFERRED and self.gate is not None and handle is not None:
            out = tell_gate(out, handle, slope=gate_slope(self.gate, u))
        if reading.contraction is not None and flat is not z:
            out = reading.contraction.give(out, z)
            handle = None if handle is None else reading.contraction.give(handle, z)
        if self.gate is DEFERRED and self.take is not None:
            out = self.take(self.module, (), (out, handle))
        return out

    def _recorded(self, z, x, reading, statistics, part, cache) -> tuple[torch.Tensor, Any]:
        if statistics is None:
            return z, handle_of(z)
        weight = self.one_matrix()
        # Which token a row is, is the router's: what tells padding is that nothing comes back.
        masked = bool(self.parts) and masks.of_ones(masks.current_mask())
        several = self.parts and (part is None or (isinstance(part, torch.Tensor) and part.ndim))
        if self.parts and not several:
            key = (id(self), "parts")
            if key not in cache:
                cache[key] = unstacked(statistics)
            statistics = cache[key][part]
        if several or masked:
            alone = not several
            out, handle = record_parts(
                z.reshape(1, -1, z.shape[-1]) if alone else z,
                x.reshape(1, -1, x.shape[-1]) if alone else x,
                weight,
                centered=self.own_pair()[1] is not None,
                gated=self.gate is not None,
                rule=self.rule,
                statistics=stacked([statistics]) if alone else statistics,
                ids=None if alone else part,
                ends=reading.ends,
                masked=masked,
            )
            return (out.reshape(z.shape), handle.reshape(z.shape)) if alone else (out, handle)
        told = self.gate is DEFERRED or (self.added and self.gate is not None)
        bias = None if self.own_pair()[1] is None else weight.new_empty(weight.shape[0])
        out = record(
            reading.operation,
            z,
            x,
            weight,
            bias,
            gate=DEFERRED if told else self.gate,
            rule=self.rule,
            process_group=self.process_group,
            statistics=statistics,
        )
        return out if told else (out, None)

    def _with_bias(self, z: torch.Tensor, part: Any, ends: Any) -> torch.Tensor:
        """What is added to it, added."""
        bias = self.own_pair()[1]
        if bias is None:
            return z
        bias = bias.detach()
        if not self.parts:
            return z + bias.reshape(-1)
        bias = bias.reshape(self.parts, -1)
        if ends is not None:
            rows = torch.arange(len(z), device=z.device)
            part = torch.searchsorted(ends, rows, right=True).clamp_max(self.parts - 1)
        if part is None:
            return z + bias[:, None]
        return z + bias[part]
