"""The settings of one situation: a network, how its loss is wrapped, what steps it, its data.

Everything is a literal, so that the `repr` of a case is the case: a failing one is reproduced by
pasting it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Batches = Literal["whole", "vmap", "rows", "accumulate", "scan", "axis", "update"]
Freezing = Literal["gradient", "stopped", "inner", "outer"]

#: What a case may be an instance of, in the order of the summary.
KINDS = (
    *("dense", "conv", "shared", "normalizer", "residual", "dropout", "no bias"),
    *("unreached", "empty", "single row", "standardized", "uniform", "layer", "error"),
    *("frozen kernel", "frozen bias", "frozen layer", "frozen entries", "frozen biases"),
    *("vmap", "rows", "accumulate", "scan", "axis", "update", "average", "remat", "loss scale"),
    *("closure", "clip norm", "clip value", "clip inside"),
    *("sgd", "momentum", "nesterov", "adam", "adamw", "groups", "weight decay", "schedule"),
    *("decay", "constant", "large mean", "unit", "float64", "float32"),
)
#: What the rules are called, and what they change.
RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "standardized": {"step_size": "standardized"},
    "uniform": {"weighting": "uniform"},
    "layer": {"scale": "layer"},
    "error": {"weighting": "error"},
}


@dataclass(frozen=True)
class Block:
    """A layer with what stands around it.

    Attributes:
        width: of its output.
        gate: the activation.
        bias: whether there is one.
        calls: how often the block is passed, with the same weights.
        normalizer: of the features ("layer") or over the rows ("batch"), before the activation (its
            gate is then deferred), or "after" it.
        residual: the block's input is added "before" the activation or "after" it.
        dropout: whether the output is multiplied by a fixed random mask.
        stride: of a convolution.
        padding: of a convolution, on both sides.
    """

    width: int
    gate: str
    bias: bool = True
    calls: int = 1
    normalizer: Literal["none", "layer", "batch", "after"] = "none"
    residual: Literal["none", "before", "after"] = "none"
    dropout: bool = False
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Network:
    """Blocks, then one or two heads without an activation.

    Attributes:
        inputs: features, or channels.
        space: the extent of what convolutions read, () for dense blocks.
        blocks: each is named ``block_0``, ...
        heads: named ``head_0``, ...
        reached: which heads the loss of each step depends on.
        idle: whether the others are "skipped" or called on an "empty" batch.
    """

    inputs: int
    space: tuple[int, ...]
    blocks: tuple[Block, ...]
    heads: int
    reached: tuple[tuple[int, ...], ...]
    idle: Literal["skipped", "empty"] = "skipped"


@dataclass(frozen=True)
class Wrapping:
    """How a step's gradient is made.

    Attributes:
        batches: "whole"; "vmap" of the forward pass over groups of rows, or "rows" one by one, the
            gradient outside; "accumulate" and "scan" over micro-batches; the gradient inside of a
            mapped "axis", summed by lax.psum or pmean, or the statistics by "update".
        parts: into how many the batch is cut.
        average: whether gradients and statistics are averaged over the parts, as one tree.
        remat: whether the forward pass is made twice.
        scaled: whether the loss is scaled, and gradients and statistics are scaled back.
        clip: of the plain gradient or in the coordinates, by its norm; or each entry.
        closure: whether the optimizer calls the backward pass (PyTorch).
        warm: whether the first step's batch is whole, so that all parts of the next know about
            where to take their sums.
    """

    batches: Batches = "whole"
    parts: int = 1
    average: bool = False
    remat: bool = False
    scaled: bool = False
    clip: Literal["none", "norm", "inside", "value"] = "none"
    closure: bool = False
    warm: bool = False

    def at(self, step: int) -> Wrapping:
        """That of one step."""
        if not (self.warm and step == 0):
            return self
        return replace(self, batches="whole", parts=1, average=False, warm=False)


@dataclass(frozen=True)
class Frozen:
    """What does not learn, and who says so.

    Attributes:
        what: a whole parameter, some of its entries, or a whole layer.
        layer: its name.
        by: zeros in the "gradient"; "stopped": no gradient (lax.stop_gradient, requires_grad);
            "inner": the inner optimizer (optax.set_to_zero, a rate of 0); "outer": a step thrown
            away and said by `frozen=` in JAX, not given to the optimizer in PyTorch.
    """

    what: Literal["kernel", "bias", "layer", "entries", "biases"]
    layer: str
    by: Freezing


@dataclass(frozen=True)
class Structure:
    """All that a compiled step depends on.

    Attributes:
        network: see `Network`.
        wrapping: see `Wrapping`.
        optimizer: its rule; weight decay is decoupled.
        groups: which parameters have a rate and a decay of their own; "no decay" is the usual
            group of biases with the same rate.
        frozen: or None.
        rows: of each step's batch.
        dtype: of everything.
        alone: the steps whose batch has one row.
        rule: "default", or by its weighting or scale.
    """

    network: Network
    wrapping: Wrapping
    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
    groups: Literal["none", "biases", "no decay", "last"]
    frozen: Frozen | None
    rows: int
    dtype: Literal["float64", "float32"]
    alone: tuple[int, ...] = ()
    rule: Literal["default", "uniform", "layer", "error"] = "default"

    @property
    def steps(self) -> int:
        """How many steps are made."""
        return len(self.network.reached)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all layers, in the order of the forward pass."""
        network = self.network
        blocks = (f"block_{n}" for n in range(len(network.blocks)))
        return (*blocks, *(f"head_{n}" for n in range(network.heads)))


@dataclass(frozen=True)
class Case:
    """One situation: a structure, and the numbers that it is filled with.

    Attributes:
        structure: see `Structure`.
        seed: of all arrays.
        ratio: mean of the inputs beside their standard deviation, of most features.
        std: of most features.
        constant: how many features are constant.
        start: weights of the first layer "fitted" to the inputs, "small", or "zero".
        rates: of the two groups.
        schedule: what the rates are multiplied by in each step.
        weight_decays: of the two groups.
        decay: of the statistics.
        scale: of the loss.
        limit: of the clipping.
    """

    structure: Structure
    seed: int
    ratio: float = 1.0
    std: float = 1.0
    constant: int = 0
    start: Literal["fitted", "small", "zero"] = "fitted"
    rates: tuple[float, float] = (0.1, 0.1)
    schedule: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    weight_decays: tuple[float, float] = (0.0, 0.0)
    decay: float = 0.0
    scale: float = 1.0
    limit: float = 1.0

    def group_of(self, layer: str, name: str) -> int:
        """The group of a parameter, 0 or 1."""
        groups = self.structure.groups
        if groups in ("biases", "no decay"):
            return int(name == "bias")
        return int(groups == "last" and layer == self.structure.layers[-1])

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it is an instance of, as the summary counts it."""
        structure, found = self.structure, []
        network, wrapping, frozen = structure.network, structure.wrapping, structure.frozen
        found.append("conv" if network.space else "dense")
        blocks = network.blocks
        found += ["shared"] * any(block.calls > 1 for block in blocks)
        found += ["normalizer"] * any(block.normalizer != "none" for block in blocks)
        found += ["residual"] * any(block.residual != "none" for block in blocks)
        found += ["dropout"] * any(block.dropout for block in blocks)
        found += ["no bias"] * any(not block.bias for block in blocks)
        every = set(range(network.heads))
        if any(set(reached) != every for reached in network.reached):
            found.append("empty" if network.idle == "empty" else "unreached")
        found += ["single row"] * bool(structure.alone)
        found += [structure.rule] * (structure.rule != "default")
        if frozen is not None:
            found.append(f"frozen {frozen.what}")
        if wrapping.batches != "whole":
            found.append(wrapping.batches)
        found += ["average"] * wrapping.average + ["remat"] * wrapping.remat
        found += ["loss scale"] * wrapping.scaled + ["closure"] * wrapping.closure
        if wrapping.clip != "none":
            found.append(f"clip {wrapping.clip}")
        found += [structure.optimizer] + ["groups"] * (structure.groups != "none")
        found += ["weight decay"] * any(self.weight_decays)
        found += ["schedule"] * (len(set(self.schedule[: structure.steps])) > 1)
        found += ["decay"] * (self.decay > 0) + ["constant"] * (self.constant > 0)
        found += ["large mean"] * (self.ratio >= 1e3)
        found += ["unit"] * (not 1e-2 <= self.std <= 1e2)
        return (*found, structure.dtype)

    def with_structure(self, **changes: object) -> Case:
        """The same numbers in a changed structure."""
        return replace(self, structure=replace(self.structure, **changes))
