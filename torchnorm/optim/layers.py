"""The layers of one optimizer: which they are, their statistics, and their coordinates."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from torchnorm.modules.base import Neuronwise
from torchnorm.modules.neuron_stats import NeuronStats
from torchnorm.statistics import tracked
from torchnorm.statistics.moments import Moments
from torchnorm.statistics.tracked import Statistics

#: Under these names wrappers keep what they wrap: torch.compile, checkpoint_wrapper.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


class Layer(NamedTuple):
    """One layer with what belongs to it.

    Attributes:
        name: in the model, as without DDP and torch.compile.
        module: the layer.
        weight: its parameter, which FSDP2 takes out of the module at times.
        bias: likewise, or None.
        stats: its statistics.
    """

    name: str
    module: Neuronwise
    weight: torch.Tensor
    bias: torch.Tensor | None
    stats: NeuronStats


class Coordinates(NamedTuple):
    """What changes the coordinates of one layer's parameters.

    Attributes:
        weight: the layer's.
        bias: the layer's, or None where it may not move.
        swap: the weight as [O, I, ...], and back.
        moments: of each neuron's inputs.
        root: of what a step is divided by, ().
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    swap: Callable[[torch.Tensor], torch.Tensor]
    moments: Moments
    root: torch.Tensor

    def applied(self, change: Any, weight: torch.Tensor, bias: Any) -> tuple[Any, Any]:
        """`change` of the weight and the bias (or None), in their own layouts and dtypes."""
        dtype = torch.promote_types(self.moments.sigma.dtype, weight.dtype)
        flat = self.swap(weight).to(dtype)
        flat_bias = None if bias is None else bias.to(dtype)
        moments = Moments._make(_beside(value, weight) for value in self.moments)
        flat, flat_bias = change(flat, flat_bias, moments, _beside(self.root, weight))
        result = self.swap(flat).to(weight.dtype)
        if result.stride() != weight.stride():
            # Fused optimizers take it for granted that a gradient lies as its parameter does.
            result = torch.empty_like(weight).copy_(result)
        return result, None if bias is None else flat_bias.to(bias.dtype)


def _beside(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """As a tensor that may meet the parameter: under FSDP2 replicated over its mesh."""
    if not hasattr(parameter, "device_mesh"):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def recording(model: nn.Module) -> dict[str, Neuronwise]:
    """Name -> layer, of those that can record; raises where they do not fit together."""
    layers: dict[str, Neuronwise] = {}
    owners: dict[int, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, Neuronwise) or module.rule.gradient == "plain":
            continue
        name = _name(model, path)
        if module.rule.gradient not in (None, "plain_with_statistics"):
            raise ValueError(
                f"model: got the layer {name!r} with gradient={module.rule.gradient!r}, expected "
                "'plain_with_statistics', the default; a layer that adapts the gradient itself "
                "goes with SGD alone"
            )
        for what, parameter in (("weight", module.weight), ("bias", module.bias)):
            other = name if parameter is None else owners.setdefault(id(parameter), name)
            if other != name:
                raise ValueError(
                    f"model: got one {what} in the layers {other!r} and {name!r}, expected one "
                    "each; give one of them gradient='plain', or call one layer twice"
                )
        layers[name] = module
    if not layers:
        raise ValueError(
            "model: got one in which no layer records statistics, expected at least one; use the "
            "layers of torchnorm, or torchnorm.convert(model), with "
            "gradient='plain_with_statistics' or the default"
        )
    return layers


def _name(model: nn.Module, path: str) -> str:
    """The path without what DDP, torch.compile and checkpointing put into it."""
    parts: list[str] = []
    module: Any = model
    for part in path.split(".") if path else ():
        if not (part in _WRAPPED or (part == "module" and isinstance(module, _PARALLEL))):
            parts.append(part)
        module = module._modules[part]
    return ".".join(parts)


class Layers:
    """The layers of one optimizer."""

    def __init__(self, modules: dict[str, Neuronwise], process_group: Any) -> None:
        self.modules, self.process_group = modules, process_group
        self.layers: dict[str, Layer] = {}

    def add(self, learnt: set[int]) -> bool:
        """Let those record whose weights are among the parameters; whether there are any."""
        for name, module in self.modules.items():
            if id(module.weight) in learnt and name not in self.layers:
                stats = module.init_statistics()
                self.layers[name] = Layer(name, module, module.weight, module.bias, stats)
        return bool(self.layers)

    def forget(self) -> None:
        """Drop what was gathered since the last step."""
        for layer in self.layers.values():
            layer.stats.forget()

    def merged(self, learnt: set[int]) -> dict[str, Statistics]:
        """The statistics with what was gathered, of the layers that are to be stepped.

        Nothing is changed yet: see `keep`.
        """
        active = [
            layer
            for layer in self.layers.values()
            if layer.weight.grad is not None and id(layer.weight) in learnt
        ]
        for layer in active:
            if layer.module._modules.get("neuron_stats") is not layer.stats:
                raise ValueError(
                    f"neuron_stats: got none of this optimizer's in {layer.name!r}, expected "
                    "those that it gave it; the layer was reverted, or has another optimizer now: "
                    "make this one anew"
                )
        new = self._shared(active, {layer.name: _gathered(layer) for layer in active})
        merged = {}
        for layer in active:
            statistics = new[layer.name]
            if self._nothing(layer, statistics):
                _check_idle(layer)
                if not layer.stats.count:
                    continue  # never called: no coordinates, and nothing to learn
            merged[layer.name] = tracked.merge(_values(layer), statistics)
        return merged

    def coordinates(
        self, merged: dict[str, Statistics], learnt: set[int], skipped: Any
    ) -> list[Coordinates]:
        """Those of each layer; raises where its statistics are of no use."""
        return [
            _coordinates(self.layers[name], statistics, learnt, skipped)
            for name, statistics in merged.items()
        ]

    def keep(self, merged: dict[str, Statistics], skipped: Any) -> None:
        """Write the merged statistics, unless the step was skipped; forget what was gathered."""
        for name, statistics in merged.items():
            layer = self.layers[name]
            if skipped is not None:
                old = _values(layer)
                skip = skipped.to(old["calls"].device) > 0
                statistics = {
                    k: v if k == "steps" else torch.where(skip, old[k], v)
                    for k, v in statistics.items()
                }
            layer.stats.write(statistics)
            layer.stats.stepped()
        self.forget()

    def _nothing(self, layer: Layer, new: Statistics) -> bool:
        """Whether statistics were to be taken and no process has any, as far as is known."""
        if not layer.stats.taken or layer.stats.gathered() is not None:
            return False
        on_cpu = new["calls"].device.type == "cpu"
        if self._group(layer) is not None and not on_cpu and layer.stats.count:
            return False  # others may have some: not worth waiting for the device
        return not bool(new["calls"])

    def _group(self, layer: Layer) -> Any:
        """The processes that share the layer's batch; None if this one is alone."""
        if not dist.is_available() or not dist.is_initialized():
            return None
        group = self.process_group or layer.module.process_group or dist.group.WORLD
        return None if dist.get_world_size(group) == 1 else group

    def _shared(
        self, active: Iterable[Layer], gathered: dict[str, Statistics]
    ) -> dict[str, Statistics]:
        """The sums over all processes, in one collective per group and dtype."""
        parts: dict[Any, list[tuple[str, str]]] = {}
        for layer in active:
            group = self._group(layer)
            for entry, value in gathered[layer.name].items() if group is not None else ():
                parts.setdefault((group, value.dtype), []).append((layer.name, entry))
        total = {name: dict(statistics) for name, statistics in gathered.items()}
        for (group, _), places in parts.items():
            values = [gathered[name][entry] for name, entry in places]
            flat = torch.cat([value.reshape(-1) for value in values])
            dist.all_reduce(flat, group=group)
            pieces = flat.split([value.numel() for value in values])
            for (name, entry), value, piece in zip(places, values, pieces, strict=True):
                total[name][entry] = piece.reshape(value.shape)
        return total

    def state_dict(self) -> dict[str, Statistics]:
        """{layer: {entry: tensor}}."""
        return {
            name: {entry: value.clone() for entry, value in _values(layer).items()}
            for name, layer in self.layers.items()
        }

    def check_state_dict(self, state: dict[str, Statistics]) -> None:
        """Raise a ValueError unless the statistics are of these layers."""
        own = self.state_dict()
        if _shapes(state) != _shapes(own):
            raise ValueError(
                f"neuron_stats: got statistics of {sorted(state)}, expected those of {sorted(own)} "
                "with the same entries and shapes; they are of another model or rule"
            )

    def load_state_dict(self, state: dict[str, Statistics]) -> None:
        """Take over statistics that were checked."""
        for name, layer in self.layers.items():
            layer.stats.write(state[name])
            layer.stats.stepped(int(state[name]["steps"]))
        self.forget()


def _shapes(tree: dict[str, Statistics]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {name: {e: tuple(v.shape) for e, v in each.items()} for name, each in tree.items()}


def _values(layer: Layer) -> Statistics:
    return {entry: value.detach() for entry, value in layer.stats.read().items()}


def _gathered(layer: Layer) -> Statistics:
    """What the backward passes have left; zeros if nothing."""
    new = layer.stats.gathered()
    if new is None:
        return {entry: torch.zeros_like(value) for entry, value in _values(layer).items()}
    return {entry: value.detach() for entry, value in new.items()}


def _check_idle(layer: Layer) -> None:
    """Raise where a layer has a gradient but no statistics."""
    grad: Any = layer.weight.grad
    grad = grad.to_local() if hasattr(grad, "to_local") else grad
    # Zeros instead of None: of a layer that was not called after zero_grad(set_to_none=False).
    if bool(grad.any()):
        raise ValueError(
            f"neuron_stats: got none for {layer.name!r} since the last step, expected those of a "
            "backward pass; call model.train(), optimizer.zero_grad() before and step() after "
            "loss.backward()"
        )


def _coordinates(
    layer: Layer, statistics: Statistics, learnt: set[int], skipped: Any
) -> Coordinates:
    bias = layer.bias
    if bias is not None and (bias.grad is None or id(bias) not in learnt):
        bias = None
    usable = tracked.usable(statistics)
    skip = torch.zeros_like(usable) if skipped is None else skipped.to(usable.device) > 0
    if usable.device.type == "cpu" and not bool(usable | skip):
        raise ValueError(
            f"neuron_stats: got statistics of {layer.name!r} that were never updated or hold a "
            "single sample, which is its own mean; train on larger batches, or use a Rule with "
            "decay > 0"
        )
    calls = statistics["calls"].clamp_min(1)
    root = torch.where(usable, (statistics["divisor"] / calls).sqrt(), torch.nan)
    root = torch.where(skip, 1, root)  # of a step of 0, which is to stay 0
    moments = tracked.moments(statistics, centered=bias is not None)
    return Coordinates(layer.weight, bias, layer.module.neurons_first, moments, root)
