"""What the layers of a model read in a batch, gathered by hooks while the backward pass runs."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from torchnorm import checks
from torchnorm.modules.recording import is_dropped
from torchnorm.operations.convolution import Convolution, TransposedConvolution, pad
from torchnorm.operations.linear import Dense, LinearOperation
from torchnorm.optim.layers import layout, parameters
from torchnorm.rule import Rule
from torchnorm.statistics.batch import make_batch
from torchnorm.statistics.weighted_sums import sums_about
from torchnorm.statistics.weighting import raw_weight


class Inputs(NamedTuple):
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

    def merged(self, other: "Inputs") -> "Inputs":
        """The two as one batch."""
        return Inputs(self.samples + other.samples, *merged(self[1:], other[1:]))


def merged(old: Any, new: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mass, mean, second) of both together (Chan's merge)."""
    total = old[0] + new[0]
    part = new[0] / torch.where(total > 0, total, 1)
    step = new[1] - old[1]
    return total, old[1] + part * step, old[2] + new[2] + old[0] * part * step**2


class Gatherer:
    """Gathers what the layers read in the backward passes since it was last asked.

    Args:
        layers: name -> layer.
        centered: name -> whether a bias absorbs the mean.
        rule: see `Rule`; its weighting.
    """

    def __init__(self, layers: dict[str, Any], centered: dict[str, bool], rule: Rule) -> None:
        self.layers, self.centered, self.rule = layers, centered, rule
        self.weights = {name: parameters(layer).weight for name, layer in layers.items()}
        self.inputs: dict[str, Inputs] = {}
        self.handles = {
            name: layer.register_forward_hook(_Gather(self, name), with_kwargs=True)
            for name, layer in layers.items()
        }
        # The hooks do not keep this object, and are gone with it.
        weakref.finalize(self, _remove, self.handles).atexit = False

    def stop(self, name: str) -> None:
        """Gather no more of one layer."""
        self.handles[name].remove()
        self.inputs.pop(name, None)

    def add(self, name: str, x: torch.Tensor, g_z: torch.Tensor) -> None:
        """Add one call of a layer."""
        with torch.no_grad():
            new = _inputs(
                self.layers[name], x.detach(), g_z.detach(), self.rule, self.centered[name]
            )
        old = self.inputs.get(name)
        self.inputs[name] = new if old is None else old.merged(new)

    def take(self) -> dict[str, Inputs]:
        """What was gathered, which is forgotten."""
        inputs, self.inputs = self.inputs, {}
        return inputs


def _remove(handles: dict[str, Any]) -> None:
    for handle in handles.values():
        handle.remove()


class _Gather:
    """A forward hook: has the layer's call gathered when its gradient arrives."""

    def __init__(self, owner: Gatherer, name: str) -> None:
        self.owner, self.name = weakref.ref(owner), name

    def __call__(self, layer: Any, args: tuple, kwargs: dict, out: Any) -> None:
        owner, weight = self.owner(), parameters(layer).weight
        # Of another weight than the optimizer's (`functional_call`; one that is computed now, with
        # which the next step leaves the layer out) the gradient is another one's.
        if owner is None or weight is not owner.weights[self.name] or not torch.is_grad_enabled():
            return
        if is_dropped(weight):
            # A new step: what was gathered for gradients that were dropped since is dropped too.
            owner.inputs.pop(self.name, None)
        z = out[0] if isinstance(out, tuple) else out
        if z.requires_grad and weight.requires_grad:
            x = args[0] if args else next(iter(kwargs.values()))
            checks.check_dense(input=x)
            node = torch.autograd.graph.get_gradient_edge(weight).node
            z.register_hook(lambda g_z: self._add(x, g_z, node))

    def _add(self, x: torch.Tensor, g_z: torch.Tensor, node: Any) -> None:
        owner = self.owner()
        if owner is not None and _is_reached(node):
            owner.add(self.name, x, g_z)

    def __reduce__(self) -> Any:
        # A copy of the model is not the optimizer's, nor is one that was saved whole.
        return _nothing, ()


def _is_reached(node: Any) -> bool:
    """Whether this backward pass comes to a weight, and is not one of other gradients only."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # that of a leaf which `torch.autograd.grad` was asked for
        return True


def _nothing() -> Callable[..., None]:
    """What `_ignore` is pickled as."""
    return _ignore


def _ignore(layer: Any, args: tuple, kwargs: dict, out: Any) -> None:
    """A forward hook that does nothing."""


def _inputs(layer: Any, x: torch.Tensor, g_z: torch.Tensor, rule: Rule, centered: bool) -> Inputs:
    """What the layer's neurons read in one call."""
    operation, x, g_z = _operation(layer, x, g_z)
    weight = layout(layer)(layer.weight.detach())
    batch = make_batch(operation, x, weight, g_z, None, rule, centered=centered)
    center = batch.mean
    layer_sums, neuron_sums = sums_about(batch, center, raw_weight(batch))
    mass, _, first, second, *_ = (neuron_sums or layer_sums).with_padding()
    if not centered:
        return Inputs(batch.samples, mass, torch.zeros_like(second), second)
    offset = torch.where(mass > 0, first / torch.where(mass > 0, mass, 1), 0)
    second = (second - offset * first).clamp_min(0)
    return Inputs(batch.samples, mass, operation.per_tap(center, weight) + offset, second)


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
    options: Any = {"groups": layer.groups, "spatial_axes": rank, "stride": stride}
    options["dilation"] = dilation
    if layer.transposed:
        # What the call's output_size has made of it.
        sizes = zip(x.shape[2:], z.shape[2:], stride, layer.padding, dilation, window, strict=True)
        extra = tuple(o - (n - 1) * s + 2 * p - d * (k - 1) - 1 for n, o, s, p, d, k in sizes)
        options |= {"padding": layer.padding, "output_padding": extra, "padded": True}
        return TransposedConvolution(**options), x, z
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    x, padding = pad(x, window, stride, padding, dilation)
    return Convolution(padding=padding, padded=any(padding), **options), x, z
