"""The statistics of one optimizer's layers, from the backward pass to the next step."""

import copy
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from torchnorm import checks, compat
from torchnorm.compiling import uncompiled, uncompiled_alone
from torchnorm.coordinates import at_hand
from torchnorm.modules.neuron_stats import NeuronStats
from torchnorm.modules.recording import Recording
from torchnorm.optim.decay import Decay, decay_of, needs_values
from torchnorm.optim.layers import (
    Pair,
    check_elsewhere,
    check_whole,
    has,
    learned,
    parameters,
    recording,
    unwrapped,
    warn_left_out,
)
from torchnorm.optim.refusals import flat
from torchnorm.statistics.batch import total
from torchnorm.statistics.parts import merge
from torchnorm.statistics.tracked import Statistics

#: {field: tensor} of a layer's statistics, as they lie in a state_dict.
Fields = dict[str, torch.Tensor]


class Layer(NamedTuple):
    """One layer with what belongs to it.

    Attributes:
        name: in the model, as without DDP and torch.compile.
        module: the layer.
        weight: its parameter, which FSDP2 takes out of the module at times.
        bias: likewise, or None.
        stats: its statistics.
        states: what the optimizer had of weight and bias before its first step, or None.
    """

    name: str
    module: Recording
    weight: torch.Tensor
    bias: torch.Tensor | None
    stats: NeuronStats
    states: Pair

    @property
    def parts(self) -> int:
        """Of how many weights the parameter is made, each with statistics of its own; else 0."""
        return getattr(self.module, "parts", 0)


class Merging(NamedTuple):
    """The arguments of `parts.merge` for one layer.

    And whether it is merged so in the first steps of a run only.
    """

    old: Statistics
    new: Statistics
    parts: int
    memory: dict[str, Any]
    at_first: bool


# What is done for a few steps is not worth a program, of which PyTorch has only so many.
_merge_at_first = uncompiled(merge)
_merge = merge if compat.compiles_merging() else _merge_at_first


# Layer by layer, so that layers that are alike are compiled once.
@uncompiled_alone
def merged(layers: dict[str, Merging]) -> dict[str, Statistics]:
    """The old statistics with the new ones, layer by layer. Nothing is changed yet: see `keep`."""
    return {
        name: (_merge_at_first if at_first else _merge)(old, new, parts, **memory)
        for name, (old, new, parts, memory, at_first) in layers.items()
    }


class Layers:
    """The layers of one optimizer, which begin to record.

    They do until they are stopped, or this object is gone.

    Args:
        model: which they are in.
        process_group: see `torchnorm.optim.in_neuron_coordinates`.
        record_in_eval: likewise.

    Attributes:
        layers: name -> layer, of those in the coordinates.
        left_out: name -> weight, of those that are not, or not any more.
        checked: whether a step has shown that the optimizer keeps no parameters.
        decays: how it decays them, by what its groups are set to.
        needing: whether its steps depend on them, likewise.
    """

    def __init__(
        self, model: nn.Module, process_group: Any, *, record_in_eval: bool = False
    ) -> None:
        self.model, self.process_group = unwrapped(model), process_group
        self.record_in_eval = record_in_eval
        self.layers: dict[str, Layer] = {}
        self.left_out: dict[str, Any] = {}
        self.checked = False
        self.decays: dict[Any, Decay] = {}
        self.needing: dict[Any, bool] = {}

    def decay_of(self, optimizer: Any, group: dict[str, Any]) -> Decay:
        """How the optimizer decays the parameters of one of its groups, tried once."""
        switches = {name: value for name, value in group.items() if isinstance(value, bool)}
        key = (group.get("weight_decay", 0) != 0, *sorted(switches.items()))
        if key not in self.decays:
            self.decays[key] = decay_of(optimizer, group)
        return self.decays[key]

    def needs_values(self, optimizer: Any, group: dict[str, Any]) -> bool:
        """Whether the optimizer's step depends on the parameters of a group, tried once."""
        switches = {name: value for name, value in group.items() if isinstance(value, bool)}
        key = tuple(sorted(switches.items()))
        if key not in self.needing:
            self.needing[key] = needs_values(optimizer, group)
        return self.needing[key]

    def add(self, optimizer: Any) -> bool:
        """Let those record whose weights the optimizer learns; whether there are any."""
        ids, found, computed = learned(optimizer), [], []
        # A layer that was in the model is no other model's.
        check_elsewhere(self.model, ids - {id(layer.weight) for layer in self.layers.values()})
        for name, module in recording(self.model).items():
            weight, bias = parameters(module)
            if weight is None:
                learns = any(id(p) in ids for p in module.parameters())
                told = name in self.layers or name in self.left_out
                computed += [name] if learns and not told else []
            elif id(weight) in ids and weight is not self.left_out.get(name):
                if name not in self.layers or self.layers[name].module is not module:
                    states = Pair(*(_state(optimizer, each) for each in (weight, bias)))
                    found.append((name, module, weight, bias, states))
        self.stop([self.layers[name] for name, *_ in found if name in self.layers])
        for name, module, weight, bias, states in found:
            self._start(Layer(name, module, weight, bias, module.init_statistics(), states))
        self._leave_out({name: None for name in computed}, "is computed")
        return bool(self.layers)

    def leave_changed(self) -> list[Layer]:
        """Stop those whose parameters have become others: a step would be one of other tensors."""
        changed = {name: layer for name, layer in self.layers.items() if _is_changed(layer)}
        now = [p for layer in changed.values() for p in parameters(layer.module)]
        taken = {id(p) for p in now if p is not None}
        # Tied to one of those, a layer has a gradient of more than it has recorded.
        for name, layer in self.layers.items():
            if not taken.isdisjoint((id(layer.weight), id(layer.bias))):
                changed[name] = layer
        self.stop(changed.values())
        weights = {name: layer.weight for name, layer in changed.items()}
        self._leave_out(weights, "or bias is computed now, or another parameter")
        return list(changed.values())

    def _leave_out(self, weights: dict[str, Any], why: str) -> None:
        self.left_out |= weights
        warn_left_out(list(weights), why)

    def _start(self, layer: Layer) -> None:
        self.layers[layer.name] = layer
        layer.stats.in_eval = self.record_in_eval
        layer.module.neuron_stats = layer.stats
        # An optimizer that is gone costs nothing.
        end = weakref.finalize(self, _end, weakref.ref(layer.module), layer.stats)
        end.atexit = False

    def stop(self, layers: Iterable[Layer]) -> None:
        """Take layers out, so that they record no more."""
        for layer in list(layers):
            del self.layers[layer.name]
            _end(weakref.ref(layer.module), layer.stats)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"layers": [e for e in self.layers.values() if _is_recording(e)]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, layers={})
        for layer in state["layers"]:
            self._start(layer)

    def forget(self) -> None:
        """Drop what was gathered since the last step."""
        for layer in self.layers.values():
            layer.stats.forget()

    @uncompiled
    def active(self, learned: set[int]) -> tuple[list[Layer], dict[str, Merging]]:
        """The layers that are to be stepped, and of some of them what is to be merged.

        Those that were not to take statistics have their old ones.
        """
        active = [
            layer
            for layer in self.layers.values()
            if layer.weight.grad is not None and id(layer.weight) in learned
        ]
        for layer in active:
            if not _is_recording(layer):
                raise ValueError(
                    f"neuron_stats: got none of this optimizer's in {layer.name!r}, expected "
                    "those that it gave it; the layer was reverted, or has another optimizer now: "
                    "make this one anew"
                )
        new = self._shared({layer.name: _gathered(layer) for layer in active if layer.stats.taken})
        stepped, found = [], {}
        for layer in active:
            if layer.stats.taken:
                statistics = new[layer.name]
                if self._nothing(layer, statistics):
                    _check_idle(layer, self.model)
                    if not layer.stats.count:
                        continue  # never called: no coordinates, and nothing to learn
                stats = layer.stats
                arguments = _values(layer), statistics, layer.parts, stats.memory
                found[layer.name] = Merging(*arguments, at_first=stats.at_first)
            stepped.append(layer)
        return stepped, found

    @uncompiled
    def keep(self, merged: dict[str, Statistics], skipped: Any) -> None:
        """Write the merged statistics, unless the step was skipped; forget what was gathered."""
        for name, statistics in merged.items():
            layer, recorded = self.layers[name], False
            if layer.stats.taken:
                layer.stats.write(_unless(skipped, layer, statistics))
                # (Of several processes all must think alike, whoever had no share of the batch.)
                recorded = layer.stats.has_gathered or self._group(layer) is not None
                recorded = recorded and not _is_old(statistics, skipped)
            layer.stats.stepped(recorded=recorded)
        self.forget()

    def _nothing(self, layer: Layer, new: Statistics) -> bool:
        """Whether statistics were to be taken and no process has any, as far as is known."""
        if layer.stats.has_gathered:
            return False
        on_cpu = new.scalars.device.type == "cpu"
        if self._group(layer) is not None and not on_cpu and layer.stats.count:
            return False  # others may have some: not worth waiting for the device
        return not bool(new.calls.any())

    def _group(self, layer: Layer) -> Any:
        """The processes that share the layer's batch; None if this one is alone."""
        if not dist.is_available() or not dist.is_initialized():
            return None
        group = self.process_group or layer.module.process_group or dist.group.WORLD
        return None if dist.get_world_size(group) == 1 else group

    def _shared(self, gathered: dict[str, Statistics]) -> dict[str, Statistics]:
        """The sums over all processes, in one collective per group and dtype."""
        parts: dict[Any, list[str]] = {}
        for name, statistics in gathered.items():
            group = self._group(self.layers[name])
            if group is not None:
                parts.setdefault((group, statistics.scalars.dtype), []).append(name)
        shared = dict(gathered)
        for (group, _), names in parts.items():
            values = [value for name in names for value in gathered[name].present().values()]
            pieces = iter(total(tuple(values), group))
            for name in names:
                shared[name] = gathered[name].map(lambda _, pieces=pieces: next(pieces))
        return shared

    def state_dict(self) -> dict[str, Fields]:
        """{layer: {field: tensor}}."""
        return {name: _fields(layer) for name, layer in self.layers.items()}

    def check_state_dict(self, state: dict[str, Fields]) -> None:
        """Raise a ValueError unless the statistics are of these layers."""
        expected = {name: checks.fields_of(_fields(layer)) for name, layer in self.layers.items()}
        got = {name: checks.fields_of(each) for name, each in state.items()}
        if got != expected:
            unlike = [n for n in sorted(got.keys() & expected.keys()) if got[n] != expected[n]]
            raise ValueError(
                f"neuron_stats: got statistics of {sorted(got)}, expected those of "
                f"{sorted(expected)} with the same entries and shapes"
                + (f", which those of {unlike} have not; " if unlike else "; ")
                + "they are of another model or rule, or layers were replaced, converted or left "
                "out in between: make the model and the optimizer as they were"
            )

    def load_state_dict(self, state: dict[str, Fields]) -> None:
        """Take over statistics that were checked."""
        for name, layer in self.layers.items():
            statistics = Statistics(**state[name])
            layer.stats.write(statistics)
            layer.stats.set_count(*statistics.steps_and_age)
        self.forget()


def _state(optimizer: Any, parameter: Any) -> Any:
    """What the optimizer has of a parameter before its first step."""
    state: Any = optimizer.state.get(parameter)
    for value in state.values() if isinstance(state, dict) else ():
        values = flat(value)
        if values is not None and values.numel() == parameter.numel() > 1:
            if bool((values == values[:1]).all()):
                continue
            raise ValueError(
                "optimizer: got one that has made steps, expected one that has made none; its "
                "momentum is not in the coordinates, so make it anew"
            )
    return copy.deepcopy(state)


def _end(module: Any, stats: NeuronStats) -> None:
    """Let a layer, if it is there, record no more for these statistics."""
    module = module()
    if module is not None and getattr(module, "neuron_stats", None) is stats:
        del module.neuron_stats


def _is_changed(layer: Layer) -> bool:
    """Whether the layer's parameters are no more those that it was added with."""
    check_whole(layer.module)
    same = has(layer.module, Pair(layer.weight, layer.bias))
    return not same or layer.stats.shape != layer.weight.shape


def _is_recording(layer: Layer) -> bool:
    return getattr(layer.module, "neuron_stats", None) is layer.stats


def _fields(layer: Layer) -> Fields:
    stats = layer.stats
    return _values(layer).map(torch.clone).with_steps(stats.count, stats.age).present()


def _values(layer: Layer) -> Statistics:
    return layer.stats.values


def _unless(skipped: Any, layer: Layer, new: Statistics) -> Statistics:
    """The new statistics; the old ones where the step was skipped."""
    if skipped is None:
        return new
    skip = skipped.to(new.scalars.device) > 0
    return new.map(lambda new, old: torch.where(skip, old, new), _values(layer))


def _is_old(merged: Statistics, skipped: Any) -> bool:
    """Whether they are those before, as far as is known without waiting for a device."""
    if not at_hand(merged.scalars):
        return False
    ages = merged.age
    old = bool((ages > 0).all()) if ages.ndim else float(ages) > 0
    return old or (skipped is not None and at_hand(skipped) and float(skipped) > 0)


def _gathered(layer: Layer) -> Statistics:
    """What the backward passes have left; zeros if nothing."""
    new = layer.stats.gathered()
    return _values(layer).map(torch.zeros_like) if new is None else new


def _check_idle(layer: Layer, model: nn.Module) -> None:
    """Raise where a layer has a gradient but no statistics."""
    grad: Any = layer.weight.grad
    grad = grad.to_local() if hasattr(grad, "to_local") else grad
    # Zeros instead of None: of a layer that was not called after zero_grad(set_to_none=False).
    if bool(grad.any()):
        owner = getattr(layer.module, "module", layer.module)
        if not any(module is owner for module in model.modules()):
            raise ValueError(
                f"neuron_stats: got none for {layer.name!r}, which is not in the model any more, "
                "expected the layer that the optimizer was made with; another one has its weight: "
                "make the optimizer anew"
            )
        raise ValueError(
            f"neuron_stats: got none for {layer.name!r} since the last step, expected those of a "
            "backward pass; call model.train() (or make it with record_in_eval=True), "
            "optimizer.zero_grad() before and step() after loss.backward(), of the model's own "
            "parameters, without inputs= and not torch.autograd.grad, which leave statistics out"
        )
