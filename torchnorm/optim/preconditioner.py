"""What `bnp` and `quasi_diagonal` share: the layers, their inputs, and what is kept for them.

Both change the gradients of a layer by moments of which they keep the averages themselves. The
layers need not be ours: hooks on them gather what they read while the backward pass runs.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from torchnorm.modules.base import Neuronwise
from torchnorm.modules.registry import NAMES, ours
from torchnorm.operations.convolution import Convolution, TransposedConvolution, pad
from torchnorm.operations.linear import Dense, LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked

Kept = dict[str, torch.Tensor]


class Pair(NamedTuple):
    """A layer's gradients, at the weight [O, I, ...] and at the bias [O, 1, ...] or None."""

    weight: torch.Tensor
    bias: Any


class Batch(NamedTuple):
    """What the neurons of one layer read in a batch.

    Attributes:
        samples: how many.
        mass: their weight, [O, 1, ...] or 1 for all neurons alike.
        mean: weighted mean, broadcasts against the weight; 0 without a bias.
        second: weighted sum of (x - mean)^2.
    """

    samples: int
    mass: torch.Tensor
    mean: torch.Tensor
    second: torch.Tensor

    def merged(self, other: "Batch") -> "Batch":
        """The two as one batch."""
        return Batch(self.samples + other.samples, *merged(self[1:], other[1:]))


Change = Callable[[Batch, Pair, Kept | None], tuple[Pair, Kept]]


def merged(old: Any, new: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mass, mean, second) of both together (Chan's merge)."""
    total = old[0] + new[0]
    part = new[0] / torch.where(total > 0, total, 1)
    step = new[1] - old[1]
    return total, old[1] + part * step, old[2] + new[2] + old[0] * part * step**2


def all_finite(*tensors: torch.Tensor) -> torch.Tensor:
    """Whether a batch may enter an average that is kept."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def check_number(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    """Raise an error unless `value` is a number that fits."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def check_optimizer(optimizer: Any) -> None:
    """Raise an error for what is no optimizer, or one that is in other coordinates already."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected a torch.optim one")
    if hasattr(optimizer, "_neuronwise"):
        raise ValueError(
            "optimizer: got one that is in neuron coordinates already, expected another"
        )


def before_step(optimizer: torch.optim.Optimizer, adapt: Callable[[], None]) -> None:
    """Call `adapt` when the gradients are there and the optimizer has not stepped yet."""

    def evaluated(closure: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            loss = closure()
            with torch.no_grad():
                adapt()
            return loss

        return run

    def hook(optimizer: Any, args: tuple, kwargs: dict) -> Any:
        del optimizer
        own, *rest = args
        if kwargs.get("closure") is not None:
            return args, kwargs | {"closure": evaluated(kwargs["closure"])}
        if rest and rest[0] is not None:
            return (own, evaluated(rest[0]), *rest[1:]), kwargs
        with torch.no_grad():
            adapt()
        return None

    optimizer.register_step_pre_hook(hook)


class Preconditioner:
    """Changes the gradients of a model's layers before each step of an optimizer.

    Args:
        name: of the entry in the optimizer's state_dict.
        optimizer: of any parameters of the model.
        model: its dense and convolutional layers are taken.
        weighting: the sample weight, as in `Rule`.
        change: (what a layer's neurons read, its gradients, what is kept for it, None before the
            first step) -> the new gradients, and what to keep.
    """

    def __init__(
        self, name: str, optimizer: Any, model: Any, weighting: Any, change: Change
    ) -> None:
        check_optimizer(optimizer)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "optimizer: got LBFGS, expected one that needs gradients only; its line search "
                "expects those of the loss"
            )
        if name in vars(optimizer).setdefault("_preconditioned", set()):
            raise ValueError(f"optimizer: got one with {name} already, expected another")
        self.name, self.rule, self.change = name, Rule(weighting=weighting), change
        self.layers = layers_of(optimizer, model)
        self.kept: dict[str, Kept | None] = dict.fromkeys(self.layers)
        self.batches: dict[str, Batch] = {}
        learnt = _learnt(optimizer)
        self.centered = {
            name: layer.bias is not None and layer.bias.requires_grad and id(layer.bias) in learnt
            for name, layer in self.layers.items()
        }
        for name, layer in self.layers.items():
            layer.register_forward_hook(_Gather(self, name), with_kwargs=True)
        before_step(optimizer, self.adapt)
        optimizer.register_state_dict_post_hook(self.save)
        optimizer.register_load_state_dict_pre_hook(self.load)
        vars(optimizer)["_preconditioned"].add(self.name)

    def gather(self, name: str, x: torch.Tensor, g_z: torch.Tensor) -> None:
        """Add one call of a layer to its batch."""
        layer = self.layers[name]
        x, g_z = x.detach(), g_z.detach()
        with torch.no_grad():
            batch = _batch(layer, x, g_z, self.rule, centered=self.centered[name])
        before = self.batches.get(name)
        self.batches[name] = batch if before is None else before.merged(batch)

    def adapt(self) -> None:
        """Replace the gradients."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"{self.name}: got {dist.get_world_size()} processes, expected one: each would "
                "average the moments of its own share; use in_neuron_coordinates, which shares them"
            )
        batches, self.batches = self.batches, {}
        found = {
            name: self._adapted(name, layer, batches.get(name))
            for name, layer in self.layers.items()
            if layer.weight.grad is not None
        }
        for name, (gradient, kept) in found.items():
            layer = self.layers[name]
            self.kept[name] = kept
            layer.weight.grad = gradient.weight
            if gradient.bias is not None:
                layer.bias.grad = gradient.bias

    def _adapted(self, name: str, layer: Any, batch: Batch | None) -> tuple[Pair, Kept]:
        if batch is None:
            raise ValueError(
                f"{self.name}: got no inputs of {name!r} since the last step, expected those of a "
                "backward pass; call step() once after loss.backward(), and the layer itself, not "
                "a function with its weight"
            )
        weight, bias = layer.weight.grad, None
        if self.centered[name]:
            bias = layer.bias.grad
            if bias is None:
                raise ValueError(
                    f"{self.name}: got no gradient at the bias of {name!r}, expected one, as when "
                    f"{self.name} was called; freeze biases before"
                )
        swap = layout(layer)
        dtype = batch.second.dtype
        flat = swap(weight).to(dtype)
        flat_bias = None if bias is None else bias.to(dtype).reshape(-1, *[1] * (flat.ndim - 1))
        new, kept = self.change(batch, Pair(flat, flat_bias), self.kept[name])
        new_bias = None if bias is None else new.bias.reshape(bias.shape).to(bias.dtype)
        return Pair(swap(new.weight).to(weight.dtype).contiguous(), new_bias), kept

    def save(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """{layer: {entry: tensor}} in the optimizer's state_dict."""
        del optimizer
        state = {
            name: {entry: value.clone() for entry, value in (kept or {}).items()}
            for name, kept in self.kept.items()
        }
        return state_dict | {self.name: state}

    def load(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Strictly."""
        del optimizer
        if self.name not in state_dict:
            raise ValueError(
                f"state_dict: got one without {self.name!r}, expected that of an optimizer with "
                f"torchnorm.optim.{self.name}"
            )
        state = state_dict[self.name]
        shapes = {
            name: tuple(layout(layer)(layer.weight).shape) for name, layer in self.layers.items()
        }
        if state.keys() != shapes.keys() or not all(
            _fits(value, shapes[name]) for name, kept in state.items() for value in kept.values()
        ):
            raise ValueError(
                f"state_dict: got {self.name} of {sorted(state)}, expected that of "
                f"{sorted(shapes)} with the same shapes; it is of another model"
            )
        for name, kept in state.items():
            device = self.layers[name].weight.device
            moved = {entry: value.to(device, copy=True) for entry, value in kept.items()}
            self.kept[name] = moved or None
        self.batches = {}
        return {name: value for name, value in state_dict.items() if name != self.name}


class _Gather:
    """A forward hook: has the layer's call gathered when its gradient arrives."""

    def __init__(self, owner: Preconditioner, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, layer: Any, args: tuple, kwargs: dict, out: Any) -> None:
        if layer.weight.grad is None:
            # A new step: what was gathered for gradients that were dropped since is dropped too.
            self.owner.batches.pop(self.name, None)
        z = out[0] if isinstance(out, tuple) else out
        if z.requires_grad and layer.weight.requires_grad:
            x = args[0] if args else next(iter(kwargs.values()))
            z.register_hook(lambda g_z: self.owner.gather(self.name, x, g_z))

    def __reduce__(self) -> Any:
        # A copy of the model is not the optimizer's, nor is one that was saved whole.
        return _nothing, ()


def _nothing() -> Callable[..., None]:
    """What `_ignore` is pickled as."""
    return _ignore


def _ignore(layer: Any, args: tuple, kwargs: dict, out: Any) -> None:
    """A forward hook that does nothing."""


def _learnt(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def layers_of(optimizer: torch.optim.Optimizer, model: Any) -> dict[str, Any]:
    """Name -> layer, of those whose weight the optimizer learns; names as without wrappers."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    learnt = _learnt(optimizer)
    layers, weights = {}, {}
    for name, module in model.named_modules():
        if not (isinstance(module, Neuronwise) or ours(type(module))):
            continue
        name = ".".join(p for p in name.split(".") if p not in ("_orig_mod", "module"))
        if id(module.weight) not in learnt:
            continue
        rule = getattr(module, "rule", None)
        if rule is not None and rule.gradient in ("preconditioned", "standardized"):
            raise ValueError(
                f"model: got the layer {name!r} with gradient={rule.gradient!r}, expected a layer "
                "that leaves the gradient as it is"
            )
        other = weights.setdefault(id(module.weight), name)
        if other != name:
            raise ValueError(
                f"model: got one weight in the layers {other!r} and {name!r}, expected one each; "
                "call one layer twice"
            )
        layers[name] = module
    if not layers:
        raise ValueError(
            f"optimizer: got none of the weights of the model's layers ({NAMES}), expected some; "
            "make it of model.parameters()"
        )
    return layers


def layout(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The weight as [O, I, ...], and back."""
    if isinstance(layer, Neuronwise):
        return layer.neurons_first
    kind: Any = ours(type(layer))
    return lambda weight: kind.neurons_first(layer, weight)


def _fits(value: torch.Tensor, shape: tuple[int, ...]) -> bool:
    return value.ndim == len(shape) and all(
        n in (1, m) for n, m in zip(value.shape, shape, strict=True)
    )


def _batch(layer: Any, x: torch.Tensor, g_z: torch.Tensor, rule: Rule, *, centered: bool) -> Batch:
    """What the layer's neurons read in one call."""
    operation, x, g_z = _operation(layer, x, g_z)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    center = operation.bias_grad(x) / max(operation.samples(x), 1)
    weight = layout(layer)(layer.weight.detach())
    found = tracked.batch_statistics(
        operation, x, weight, None, g_z, rule, center, centered=centered
    )
    prefix = "" if "mass" in found else "layer_"
    mass = found.get("mass", found["samples"])
    second = found[f"{prefix}second"]
    if not centered:
        mean = torch.zeros_like(second)
        return Batch(operation.samples(g_z), mass, mean, second)
    first = found[f"{prefix}first"]
    offset = torch.where(mass > 0, first / torch.where(mass > 0, mass, 1), 0)
    second = (second - offset * first).clamp_min(0)
    return Batch(operation.samples(g_z), mass, found["origin"] + offset, second)


def _operation(
    layer: Any, x: torch.Tensor, z: torch.Tensor
) -> tuple[LinearOperation, torch.Tensor, torch.Tensor]:
    """The layer's linear operation, and x and z as it takes them."""
    if not hasattr(layer, "kernel_size"):
        return Dense(), x.reshape(-1, x.shape[-1]), z.reshape(-1, z.shape[-1])
    window, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    rank = len(window)
    if x.ndim == rank + 1:
        x, z = x[None], z[None]
    how: Any = {"groups": layer.groups, "spatial_axes": rank, "stride": stride}
    how["dilation"] = dilation
    if layer.transposed:
        # What the call's output_size has made of it.
        sizes = zip(x.shape[2:], z.shape[2:], stride, layer.padding, dilation, window, strict=True)
        extra = tuple(o - (n - 1) * s + 2 * p - d * (k - 1) - 1 for n, o, s, p, d, k in sizes)
        how |= {"padding": layer.padding, "output_padding": extra, "padded": True}
        return TransposedConvolution(**how), x, z
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    x, padding = pad(x, window, stride, padding, dilation)
    return Convolution(padding=padding, padded=any(padding), **how), x, z
