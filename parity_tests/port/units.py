"""The layers of both models as they are paired: each with its entries, and no two with the same."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxnorm.checkpoints.layout import Shape
from parity_tests.port.sides.base import Side

Split = Literal["in_proj", "none", "any"]

#: What an entry of a layer in Flax is called in PyTorch.
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "embedding": "weight",
    "weight": "weight",  # a layer of the user's own
    "negative_slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
COMMON = set(LEAVES.values())
#: The gates in the order in which PyTorch stacks them, under Flax's names.
GATES = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("",)}


@dataclass
class Entry:
    """One array of a layer: its name in the framework, its shape, and what of it is meant.

    Of an array of PyTorch some rows (of the first axis), of one of Flax some columns (of the last).
    """

    name: tuple[str, ...]
    shape: Shape
    state: bool = False
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None

    @property
    def part(self) -> Shape:
        """The shape of what is meant."""
        if self.rows is not None:
            return (self.rows[1] - self.rows[0], *self.shape[1:])
        if self.columns is not None:
            return (*self.shape[:-1], self.columns[1] - self.columns[0])
        return self.shape


@dataclass
class Unit:
    """A layer with what it is made of.

    Attributes:
        path: of the module, or of the parameter that stands alone.
        kind: "layer", "array" (one that stands alone), "lstm", "gru", "rnn".
        module: the name of its class, as far as it is known.
        entries: by what they are called in PyTorch (`LEAVES`), in a recurrent cell by
            (what, gate).
        leaves: what the entries are called in Flax.
        fused: of a unit that is a part of several layers in one: the rest of its name.
    """

    path: str
    kind: str
    module: str
    entries: dict[Any, Entry] = field(default_factory=dict)
    leaves: dict[Any, str] = field(default_factory=dict)
    fused: str = ""

    @property
    def name(self) -> str:
        """What the unit is called in a table."""
        return f"{self.path}[{self.fused}]" if self.fused else self.path


def torch_units(side: Side, *, split: Split) -> list[Unit]:
    """The layers of a model in PyTorch, in the order of their definition.

    Args:
        side: the model.
        split: which fused projections count as the three layers they fuse: none, those of
            `MultiheadAttention` (``in_proj_weight``), or any with three times as many outputs as
            inputs.
    """
    arrays = {n: (a, False) for n, a in side.parameters.items()}
    arrays |= {n: (a, True) for n, a in side.states.items() if _is_statistic(n, a)}
    by_module: dict[str, dict[str, Entry]] = {}
    for name, (array, state) in arrays.items():
        module, _, leaf = name.rpartition(".")
        by_module.setdefault(module, {})[leaf] = Entry((name,), array.shape, state)
    units: list[Unit] = []
    for path, entries in by_module.items():
        kind = side.kinds.get(path, "")
        if "weight_hh_l0" in entries or ("weight_hh" in entries and "weight_ih" in entries):
            units += _torch_recurrent(path, kind, entries)
            continue
        if "in_proj_weight" in entries:
            names = ("in_proj_weight", "in_proj_bias")
            units += _projection(path, kind, entries, names, split=split != "none")
            entries = {n: e for n, e in entries.items() if not n.startswith("in_proj")}
        common = {n: e for n, e in entries.items() if n in COMMON}
        weight = common.get("weight")
        if split == "any" and weight and len(weight.shape) == 2 and _triple(weight.shape):
            units += _projection(path, kind, entries, ("weight", "bias"), split=True)
        elif common and any(n != "bias" for n in common):
            units.append(Unit(path, "layer", kind, common))
        else:
            common = {}
        for leaf, entry in entries.items():
            if leaf not in common:
                name = f"{path}.{leaf}" if path else leaf
                units.append(Unit(name, "array", kind, {"": entry}))
    return units


def _is_statistic(name: str, array: Any) -> bool:
    """Whether a buffer is a state: counters and masks are none."""
    return array.dtype.kind == "f" and not name.endswith("num_batches_tracked")


def _triple(shape: Shape) -> bool:
    return shape[0] == 3 * shape[1]


def _projection(
    path: str, kind: str, entries: dict[str, Entry], names: tuple[str, str], *, split: bool
) -> list[Unit]:
    """The projection that fuses query, key and value: three layers, or one."""
    units = []
    for n, part in enumerate(("query", "key", "value") if split else ("in_proj",)):
        unit = Unit(path, "layer", kind, fused=part)
        for leaf, name in zip(("weight", "bias"), names, strict=True):
            if name in entries:
                whole = entries[name]
                size = whole.shape[0] // 3
                rows = (n * size, (n + 1) * size) if split else None
                unit.entries[leaf] = Entry(whole.name, whole.shape, rows=rows)
        units.append(unit)
    return units


def _torch_recurrent(path: str, kind: str, entries: dict[str, Entry]) -> list[Unit]:
    ends = [n.removeprefix("weight_hh") for n in entries if n.startswith("weight_hh")]
    units = []
    for end in ends:
        inner, outer = entries[f"weight_hh{end}"], entries[f"weight_ih{end}"]
        count = inner.shape[0] // inner.shape[1]
        name = {4: "lstm", 3: "gru"}.get(count, "rnn")
        unit = Unit(path, name, kind, fused=end.lstrip("_") if len(ends) > 1 else "")
        size = inner.shape[1]
        for n, gate in enumerate(GATES[name]):
            rows = (n * size, (n + 1) * size)
            unit.entries["i", gate] = Entry(outer.name, outer.shape, rows=rows)
            unit.entries["h", gate] = Entry(inner.name, inner.shape, rows=rows)
            if f"bias_ih{end}" in entries:
                one, two = entries[f"bias_ih{end}"], entries[f"bias_hh{end}"]
                if name == "gru" and gate == "n":  # the reset gate stands between these two
                    unit.entries["bi", gate] = Entry(one.name, one.shape, rows=rows)
                    unit.entries["bh", gate] = Entry(two.name, two.shape, rows=rows)
                else:
                    both = (*two.name, *one.name)
                    unit.entries["b", gate] = Entry(both, two.shape, rows=rows)
        units.append(unit)
    return units


def flax_units(side: Side, *, split: Split = "none", cells: bool = True) -> list[Unit]:
    """The layers of a model in Flax, in the order of their definition.

    Args:
        side: the model.
        split: as in `torch_units`: with "any", dense layers with three times as many outputs as
            inputs count as three.
        cells: whether a recurrent cell counts as one layer, and not as the dense ones in it.
    """
    arrays = {n: (a, False) for n, a in side.parameters.items()}
    arrays |= {n: (a, True) for n, a in side.states.items()}
    by_module: dict[str, dict[str, Entry]] = {}
    for name, (array, state) in arrays.items():
        path = name
        if side.framework == "linen" and state:  # the collection is not a part of the path
            path = name.partition("/")[2]
        module, _, leaf = path.rpartition("/")
        by_module.setdefault(module, {})[leaf] = Entry((name,), array.shape, state)
    units: list[Unit] = []
    recurrent = _cells(by_module) if cells else {}
    for path, (kind, members) in recurrent.items():
        units.append(_flax_recurrent(path, kind, side.kinds.get(path, ""), members, by_module))
    inside = {f"{path}/{m}".lstrip("/") for path, (_, ms) in recurrent.items() for m in ms}
    for path, entries in by_module.items():
        if path in inside:
            continue
        kind = side.kinds.get(path, "")
        common = {n: e for n, e in entries.items() if n in LEAVES}
        kernel = common.get("kernel")
        if split == "any" and kernel and len(kernel.shape) == 2 and _triple(kernel.shape[::-1]):
            units += _flax_projection(path, kind, common)
        elif common and any(n != "bias" for n in common):
            unit = Unit(path, "layer", kind)
            for leaf, entry in common.items():
                unit.entries[LEAVES[leaf]], unit.leaves[LEAVES[leaf]] = entry, leaf
            units.append(unit)
        else:
            common = {}
        for leaf, entry in entries.items():
            if leaf not in common:
                name = f"{path}/{leaf}".lstrip("/")
                units.append(Unit(name, "array", kind, {"": entry}, {"": leaf}))
    return units


def _flax_projection(path: str, kind: str, entries: dict[str, Entry]) -> list[Unit]:
    """The dense layer that fuses query, key and value: three layers."""
    units = []
    for n, part in enumerate(("query", "key", "value")):
        unit = Unit(path, "layer", kind, fused=part)
        for leaf, whole in entries.items():
            size = whole.shape[-1] // 3
            entry = Entry(whole.name, whole.shape, columns=(n * size, (n + 1) * size))
            unit.entries[LEAVES[leaf]], unit.leaves[LEAVES[leaf]] = entry, leaf
        units.append(unit)
    return units


def _cells(modules: dict[str, dict[str, Entry]]) -> dict[str, tuple[str, list[str]]]:
    """Path of each recurrent cell -> (its kind, its members)."""
    children: dict[str, set[str]] = {}
    for path in modules:
        parent, _, name = path.rpartition("/")
        children.setdefault(parent, set()).add(name)
    cells: dict[str, tuple[str, list[str]]] = {}
    for path, names in children.items():
        for kind in ("lstm", "gru"):
            members = [_member(side, gate, names) for side in "ih" for gate in GATES[kind]]
            if all(members) and path not in cells:
                cells[path] = (kind, [m for m in members if m])
        pair = next((p for p in (("dense_i", "dense_h"), ("i", "h")) if set(p) <= names), None)
        if pair and path not in cells:
            kernel = modules[f"{path}/{pair[1]}".lstrip("/")].get("kernel")
            if kernel is not None and len(kernel.shape) == 2:
                count = kernel.shape[1] // kernel.shape[0]
                cells[path] = ({4: "lstm", 3: "gru"}.get(count, "rnn"), list(pair))
    return cells


def _member(side: str, gate: str, names: set[str]) -> str | None:
    return next((n for n in (side + gate, f"{side}{gate}_") if n in names), None)


def _flax_recurrent(
    path: str, kind: str, module: str, members: list[str], modules: dict[str, dict[str, Entry]]
) -> Unit:
    unit = Unit(path, kind, module)
    gates = GATES[kind]
    whole = len(members) == 2
    for m, member in enumerate(members):
        which = "i" if m < len(members) / 2 else "h"
        gate = "all" if whole else gates[m % len(gates)]
        for leaf, entry in modules[f"{path}/{member}".lstrip("/")].items():
            what = which if leaf == "kernel" else f"b{which}"
            unit.entries[what, gate], unit.leaves[what, gate] = entry, leaf
    return unit


def normalized(name: str) -> str:
    """A path as it is compared with one of the other framework."""
    name = re.sub(r"([a-z])_(\d+)", r"\1.\2", name.replace("/", "."))
    return name.lower()
