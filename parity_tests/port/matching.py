"""How layers find each other.

Units are paired by the names that are given, by names that are the same, by shapes where these
admit one pairing, by what they read from layers that are paired, and what is then left, of equal
shapes, in the order in which it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxnorm.checkpoints.layout import Entry as Layout
from jaxnorm.checkpoints.layout import Shape
from jaxnorm.checkpoints.names import Names, rename
from parity_tests.port.errors import CannotCompare
from parity_tests.port.links import BY_NAME, BY_ORDER, GIVEN, ONLY, WIRED, Link, fitted
from parity_tests.port.pairing import Pair, Pairing
from parity_tests.port.sides.base import Side
from parity_tests.port.units import GATES, Entry, Split, Unit, flax_units, normalized, torch_units

#: What counts as one layer is tried in this order, until nothing is left.
SPLITS: tuple[Split, ...] = ("in_proj", "none", "any")


@dataclass(frozen=True)
class Orders:
    """Paths of the modules in the order of their calls, and of those whose results they read."""

    flax: Sequence[str] = ()
    torch: Sequence[str] = ()
    flax_wires: Mapping[str, set[str]] = field(default_factory=dict)
    torch_wires: Mapping[str, set[str]] = field(default_factory=dict)


def pair(
    flax: Side,
    torch: Side,
    *,
    names: Names | None = None,
    flattened: Mapping[str, Sequence[int]] | None = None,
    orders: Orders | None = None,
) -> Pairing:
    """Pair two models.

    Args:
        flax: the model in linen or nnx.
        torch: the model in PyTorch.
        names: the PyTorch name of a layer or an entry by its path in Flax, as in
            `jaxnorm.from_torch`; of some of them is enough.
        flattened: path of a dense layer in Flax -> shape ``(*space, channels)`` of the image that
            is flattened before it, if its weights are to be reordered.
        orders: of the calls; None: the order of definition.

    Raises:
        CannotCompare: layers are left on a side; the text lists them with their shapes.
    """
    images = {path: tuple(image) for path, image in (flattened or {}).items()}
    orders = orders or Orders()
    tries = []
    for split in SPLITS:
        matcher = _Matcher(flax, torch, split, images, orders)
        if names is not None:
            matcher.by_given(names)
        matcher.by_name()
        for strict in (True, False):
            matcher.by_shape(strict)
            while matcher.by_wiring(strict) or matcher.by_order(strict):
                matcher.by_shape(strict)
        tries.append(matcher)
        if not matcher.left():
            break
    best = min(tries, key=lambda matcher: len(matcher.left()))
    if best.left():
        raise CannotCompare(best.complaint())
    return best.result()


class _Matcher:
    """Takes units of both sides away in pairs."""

    def __init__(
        self,
        flax: Side,
        torch: Side,
        split: Split,
        images: dict[str, Shape],
        orders: Orders,
    ) -> None:
        self.sides = (flax, torch)
        self.torch = torch_units(torch, split=split)
        cells = any(unit.kind in GATES for unit in self.torch)
        self.flax = flax_units(flax, split=split, cells=cells)
        self.images, self.orders = images, orders
        self.pairs: list[Pair] = []
        self.groups: list[list[Unit]] = []

    def by_given(self, names: Names) -> None:
        """Those whose names are given."""
        for unit in list(self.flax):
            leaf = next(iter(unit.leaves.values()))
            path = unit.path if unit.kind == "array" else f"{unit.path}/{leaf}".lstrip("/")
            wanted = rename(path, names)
            told = callable(names) or wanted != rename(path, {})
            wanted = wanted if unit.kind == "array" else wanted.rpartition(".")[0]
            found = [t for t in self.torch if wanted in (t.path, f"{t.path}.{t.fused}")]
            found = found if len(found) == 1 else [t for t in found if t.kind == unit.kind]
            if told and not found:
                near = ", ".join(t.name for t in self.torch[:6])
                raise CannotCompare(
                    f"weights: got {wanted!r} for {unit.path!r}, expected a layer of the PyTorch "
                    f"model that no other has, such as {near}"
                )
            if found and told:
                if not self.fits(unit, found[0], strict=False):
                    raise CannotCompare(
                        f"weights: got {wanted!r} for {unit.path!r}, whose shapes are "
                        f"{_shapes(found[0])} and {_shapes(unit)}, expected a layer that fits"
                    )
                self.take(unit, found[0], GIVEN)

    def by_name(self) -> None:
        """Those that are called the same."""
        for unit in list(self.flax):
            path = normalized(unit.path)
            found = [
                t
                for t in self.torch
                if path in (normalized(t.path), normalized(f"{t.path}.{t.fused}"))
                and self.fits(unit, t, strict=False)
            ]
            if len(found) == 1:
                self.take(unit, found[0], BY_NAME)

    def by_shape(self, strict: bool) -> None:
        """Those that fit each other and nothing else, until there are no more."""
        found = True
        while found:
            found = False
            for unit in list(self.flax):
                fit = [t for t in self.torch if self.fits(unit, t, strict)]
                if len(fit) == 1 and [u for u in self.flax if self.fits(u, fit[0], strict)] == [
                    unit
                ]:
                    self.take(unit, fit[0], ONLY)
                    found = True

    def by_wiring(self, strict: bool) -> bool:
        """Those that fit and read, or are read by, layers that belong together; whether any did."""
        found = False
        for unit in list(self.flax):
            fit = [t for t in self.torch if self.fits(unit, t, strict) and self.wired(unit, t)]
            if len(fit) != 1:
                continue
            rivals = [
                u for u in self.flax if self.fits(u, fit[0], strict) and self.wired(u, fit[0])
            ]
            if len(rivals) == 1:
                self.take(unit, fit[0], WIRED)
                found = True
        return found

    def wired(self, flax: Unit, torch: Unit) -> bool:
        """Whether a pair feeds both, or is fed by both."""
        ours, theirs = self.orders.flax_wires, self.orders.torch_wires
        return any(
            (p.flax.path in ours.get(flax.path, ()) and p.torch.path in theirs.get(torch.path, ()))
            or (
                flax.path in ours.get(p.flax.path, ())
                and torch.path in theirs.get(p.torch.path, ())
            )
            for p in self.pairs
        )

    def by_order(self, strict: bool) -> bool:
        """Of those that fit the same ones, the first with the first, if there are as many.

        One group at a time, matrices first: what is behind them is then known by its wiring.
        """
        for unit in sorted(self.flax, key=lambda u: -max(len(e.shape) for e in u.entries.values())):
            there = [t for t in self.torch if self.fits(unit, t, strict)]
            here = [u for u in self.flax if there and self.fits(u, there[0], strict)]
            if not there or len(here) != len(there):
                continue
            here, there = self.sorted(here, 0), self.sorted(there, 1)
            zipped = list(zip(here, there, strict=True))
            if all(self.fits(u, t, strict) for u, t in zipped):
                if len(here) > 1:
                    self.groups.append(here)
                for u, t in zipped:
                    self.take(u, t, BY_ORDER if len(here) > 1 else ONLY)
                return True
        return False

    def sorted(self, units: list[Unit], side: int) -> list[Unit]:
        """In the order of their calls; parts of a layer in their own."""
        order = (self.orders.flax, self.orders.torch)[side]
        places = {path: n for n, path in enumerate(order)}

        def place(unit: Unit) -> int:
            parts = unit.path.replace("/", ".").split(".")
            separator = "/" if side == 0 else "."
            for n in range(len(parts), -1, -1):
                if (path := separator.join(parts[:n])) in places:
                    return places[path]
            return len(places)

        return sorted(units, key=place)

    def take(self, flax: Unit, torch: Unit, sureness: str) -> None:
        """Pair two units."""
        self.flax.remove(flax)
        self.torch.remove(torch)
        self.pairs.append(Pair(flax, torch, sureness))

    def fits(self, flax: Unit, torch: Unit, strict: bool) -> bool:
        """Whether two units can be the same layer; strict: with the same entries."""
        if flax.kind != torch.kind:
            return False
        if flax.kind in GATES:
            return _recurrent_fits(flax, torch)
        here, there = set(flax.entries), set(torch.entries)
        if here != there and (strict or "weight" not in here & there):
            return False
        if flax.leaves.get("weight") == "embedding" and torch.module:
            if "Embedding" not in torch.module:
                return False
        elif "Embedding" in torch.module and flax.leaves.get("weight") == "kernel":
            return False
        return all(self.layout(flax, torch, leaf) is not None for leaf in here & there)

    def layout(self, flax: Unit, torch: Unit, leaf: str) -> Layout | None:
        """Of an entry that both have."""
        entry = torch.entries[leaf]
        return fitted(
            flax.leaves[leaf],
            flax.entries[leaf].part,
            entry.part,
            name=entry.name[0],
            transposed=self.sides[0].fields.get(flax.path, {}).get("transpose_kernel") is False,
            image=self.images.get(flax.path),
            as_is=torch.module == "Conv1D" and flax.module != "FlaxConv1D",  # both transformers'
        )

    def left(self) -> list[Unit]:
        """What no counterpart was found for."""
        return [*self.flax, *(unit for unit in self.torch if not self.constant(unit))]

    def constant(self, torch: Unit) -> bool:
        """Whether nothing trains it: a buffer that stands alone, such as a table of frequencies."""
        names = {name for entry in torch.entries.values() for name in entry.name}
        buffers = torch.kind == "array" and all(e.state for e in torch.entries.values())
        return buffers or names <= self.sides[1].frozen

    def complaint(self) -> str:
        """What is left on each side, with shapes."""
        parts = [
            f"{name}: {'; '.join(f'{u.name} {_shapes(u)}' for u in units) or 'none'}"
            for name, units in (("Flax", self.flax), ("PyTorch", self.torch))
        ]
        return (
            f"weights: got layers without a counterpart, left in {' · in '.join(parts)}, expected "
            "the same layers on both sides; name them with weights={path in Flax: name in PyTorch} "
            "if only their names or orders differ"
        )

    def result(self) -> Pairing:
        """The pairing, once nothing is left."""
        return self.of(self.pairs)

    def of(self, pairs: list[Pair]) -> Pairing:
        """The pairing of these pairs."""
        pairing = Pairing(pairs, [], again=self.of)
        fixed = []
        for each in pairs:
            if each.flax.kind in GATES:
                links = _recurrent_links(each)
                fixed += [(name, link.rows) for link in links for name in link.torch[1:]]
            else:
                links = self.links(each)
            pairing.links += links
            linked = {link.flax for link in links}
            names = {name for link in links for name in link.torch}
            for entry in each.flax.entries.values():
                if entry.name[0] not in linked:
                    pairing.spare_flax[entry.name[0]] = entry.shape
            for entry in each.torch.entries.values():
                for name in entry.name:
                    if name not in names:
                        pairing.spare_torch[name] = entry.shape
        pairing.fixed = tuple(fixed)
        if left := [unit.name for unit in self.torch]:
            pairing.notes.append(
                f"constants of PyTorch that Flax has not, left as they are: {', '.join(left)}"
            )
        if fixed:
            names = ", ".join(sorted({name for name, _ in fixed}))
            pairing.notes.append(
                f"departs by convention: PyTorch adds two biases where Flax has one; {names} is at "
                "rest in the steps of optimizers, for the sum would move twice as far"
            )
        places = {id(p.flax): n for n, p in enumerate(pairs)}
        pairing.groups = [[places[id(u)] for u in group] for group in self.groups]
        return pairing

    def links(self, each: Pair) -> list[Link]:
        """Of the entries that both have."""
        links = []
        for leaf in each.flax.entries:
            if leaf in each.torch.entries:
                layout = self.layout(each.flax, each.torch, leaf)
                assert layout is not None
                links.append(_link(each, each.flax.entries[leaf], each.torch.entries[leaf], layout))
        return links


def _link(each: Pair, flax: Entry, torch: Entry, layout: Layout) -> Link:
    return Link(
        flax.name[0],
        torch.name,
        layout,
        torch.shape,
        torch.rows,
        flax.columns,
        flax.state,
        each.sureness,
    )


def _recurrent_fits(flax: Unit, torch: Unit) -> bool:
    gates = GATES[torch.kind]
    size, inputs = torch.entries["h", gates[0]].part[0], torch.entries["i", gates[0]].part[1]
    gate, factor = ("all", len(gates)) if ("h", "all") in flax.entries else (gates[0], 1)
    if (flax.entries["h", gate].shape) != (size, size * factor):
        return False
    return flax.entries["i", gate].shape == (inputs, size * factor)


def _recurrent_links(each: Pair) -> list[Link]:
    """Gates by their names, or all of them in the order in which both stack them."""
    links = []
    for (what, gate), flax in each.flax.entries.items():
        leaf = each.flax.leaves[what, gate]
        gates = GATES[each.torch.kind]
        first = gates[0] if gate == "all" else gate
        both = {w for w, g in each.flax.entries if g == gate} >= {"bi", "bh"}
        torch = each.torch.entries.get((what, first)) or each.torch.entries.get(("b", first))
        if torch is None:
            continue
        if gate == "all":
            torch = replace(torch, rows=None)
        if both and len(torch.name) == 2:
            torch = replace(torch, name=torch.name[:1] if what == "bh" else torch.name[1:])
        elif what == "bi":  # of the two that PyTorch adds, the first is the one that is there
            torch = replace(torch, name=torch.name[::-1])
        layout = fitted(leaf, flax.shape, torch.part, name=torch.name[0])
        assert layout is not None
        links.append(_link(each, flax, torch, layout))
    return links


def _shapes(unit: Unit) -> Any:
    shapes = {
        ".".join(filter(None, key)) if isinstance(key, tuple) else key: entry.part
        for key, entry in unit.entries.items()
    }
    return ", ".join(f"{key} {shape}".strip() for key, shape in shapes.items())
