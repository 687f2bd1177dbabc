"""Every layer alone: both sides' layers are fed with what the reference's layer reads.

One pass on each side does it for all layers at once. Every call of a paired module reads the
reference's inputs, in place of what reaches it, and returns the reference's outputs, in place of
what it computes. So each layer answers for itself: a fault does not hide in the layers behind it,
and what a container adds between its layers (an activation, a residual) is the container's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from parity_tests.port import checks
from parity_tests.port.checks import Setting
from parity_tests.port.layout import Alignment, choose, flattened_image
from parity_tests.port.links import Link
from parity_tests.port.measure import distance
from parity_tests.port.report import OK, Check
from parity_tests.port.sides.base import Call, Given, Key, Run, is_float


@dataclass(frozen=True)
class Slot:
    """An array that a call reads or returns on both sides; places that hold the same one."""

    flax: tuple[int, ...]
    torch: tuple[int, ...]
    alignment: Alignment


@dataclass
class Step:
    """A call that both sides make.

    Attributes:
        flax: the call in Flax, as it is made in the plain pass.
        torch: in PyTorch.
        arguments: arrays that both read.
        results: arrays that both return.
    """

    flax: Call
    torch: Call
    arguments: list[Slot] = field(default_factory=list)
    results: list[Slot] = field(default_factory=list)


@dataclass
class Walk:
    """The steps of one mode, and what was computed in them from the reference's inputs.

    Attributes:
        mode: "train" or "eval".
        steps: in the order in which the reference's calls begin.
        given: what calls of Flax and of PyTorch were given.
        plain: the plain passes.
        runs: the passes on what was given.
    """

    mode: str
    steps: list[Step]
    given: tuple[dict[Key, Given], dict[Key, Given]]
    plain: tuple[Run, Run]
    runs: tuple[Run, Run]


def module_pairs(setting: Setting, runs: tuple[Run, Run]) -> list[tuple[str, str]]:
    """Paths of the modules that are the same: those that hold the same entries.

    Of several nested ones that hold the same, the innermost belong together, then the outermost.
    """
    found: list[tuple[str, str]] = []
    holders: tuple[dict[frozenset[int], list[str]], ...] = ({}, {})
    for side, run in enumerate(runs):
        separator = "/" if side == 0 else "."
        places = [_holders(link, side, setting) for link in setting.pairing.links]
        for path in dict.fromkeys(call.key[0] for call in run.calls):
            start = f"{path}{separator}" if path else ""
            cell = _cell(setting.flax.fields.get(path, {})) if side == 0 else None
            held = frozenset(
                n
                for n, names in enumerate(places)
                if any(f"{name}{separator}".startswith(start) for name in names)
                or (cell and any(f"{name}/".startswith(f"{cell}/") for name in names))
            )
            if held:
                holders[side].setdefault(held, []).append(path)
    for held, ours in holders[0].items():
        theirs = holders[1].get(held, [])
        ours, theirs = sorted(ours, key=len), sorted(theirs, key=len)
        if not theirs:
            continue
        if "" in ours and "" in theirs:
            found.append(("", ""))
            ours, theirs = ours[1:], theirs[1:]
        if ours and theirs:
            found.append((ours.pop(), theirs.pop()))
        found += zip(ours, theirs, strict=False)
    if ("", "") not in found:
        found.append(("", ""))
    return found


def _holders(link: Link, side: int, setting: Setting) -> list[str]:
    """Paths of the modules that hold an entry on a side."""
    if side == 1:
        return [name.rpartition(".")[0] for name in link.torch]
    name = link.flax
    if link.state and setting.flax.framework == "linen":
        name = name.partition("/")[2]
    return [name.rpartition("/")[0]]


def _cell(fields: Mapping[str, object]) -> str | None:
    """The path of the cell that a recurrent module of linen runs, which is no part of its own."""
    path = getattr(fields.get("cell"), "path", None)
    return "/".join(path) if isinstance(path, tuple) else None


def steps_of(setting: Setting, runs: tuple[Run, Run]) -> list[Step]:
    """The calls that both sides make, with what they read and return."""
    by_path: tuple[dict[str, list[Call]], ...] = ({}, {})
    for side, run in enumerate(runs):
        for call in run.calls:
            by_path[side].setdefault(call.key[0], []).append(call)
    steps = []
    for ours, theirs in module_pairs(setting, runs):
        both = zip(by_path[0].get(ours, []), by_path[1].get(theirs, []), strict=False)
        for flax, torch in both:
            image = setting.images.get(ours)
            arguments = _slots(flax.arguments, torch.arguments, image, flax.kind.endswith("Cell"))
            results = _slots(flax.results, torch.results, None, flax.kind.endswith("Cell"))
            steps.append(Step(flax, torch, arguments, results))
    index = 0 if setting.reference == "flax" else 1
    order = {call.key: n for n, call in enumerate(runs[index].calls)}
    return sorted(steps, key=lambda step: order[(step.flax, step.torch)[index].key])


def _slots(
    flax: Mapping[int, np.ndarray],
    torch: Mapping[int, np.ndarray],
    image: tuple[int, ...] | None,
    cell: bool,
) -> list[Slot]:
    """Arrays of a call that are the same on both sides: by numbers, by order and shapes.

    Args:
        flax: by place.
        torch: by place.
        image: what is flattened before the call.
        cell: whether it is a recurrent cell: ((c, h), x) in Flax is (x, (h, c)) in PyTorch.
    """
    ours, theirs = _grouped(flax), _grouped(torch)
    slots = []
    for places in list(theirs):
        equal = [o for o in ours if _equal(flax[o[0]], torch[places[0]])]
        if len(equal) == 1 and len(theirs) > 1:
            alignment = choose(torch[places[0]], flax[equal[0][0]])
            assert alignment is not None
            slots.append(Slot(equal[0], places, alignment))
            ours.remove(equal[0])
            theirs.remove(places)
    if cell:
        ours.reverse()
    for places in theirs:
        value = torch[places[0]]
        for other in [o for o in ours if is_float(flax[o[0]]) == is_float(value)]:
            if image is not None and value.shape == flax[other[0]].shape:
                alignment = flattened_image(image)
            else:
                alignment = choose(value, flax[other[0]])
            if alignment is not None:
                slots.append(Slot(other, places, alignment))
                ours.remove(other)
                break
    return sorted(slots, key=lambda slot: slot.torch)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and distance(a, b).error < 1e-6


def _grouped(arrays: Mapping[int, np.ndarray]) -> list[tuple[int, ...]]:
    """Places of arrays of numbers, those of the same array together; masks may mean the reverse."""
    groups: list[list[int]] = []
    for n, array in arrays.items():
        if not array.ndim or not (is_float(array) or array.dtype.kind in "iu"):
            continue
        for group in groups:
            first = arrays[group[0]]
            if first.shape == array.shape and np.array_equal(first, array):
                group.append(n)
                break
        else:
            groups.append([n])
    return [tuple(group) for group in groups]


def walk(setting: Setting, mode: str, without: Collection[Key] = ()) -> Walk:
    """Feed all layers of both sides with what the reference's layers read, in one mode.

    Args:
        setting: the two models.
        mode: "train" or "eval".
        without: calls of Flax that are not taken for those of PyTorch.
    """
    plain = setting.runs[mode]
    steps = [step for step in steps_of(setting, plain) if step.flax.key not in without]
    generator = np.random.default_rng(setting.seed + 17)
    given: tuple[dict[Key, Given], dict[Key, Given]] = ({}, {})
    for step in steps:
        for part in ("arguments", "results"):
            for slot in getattr(step, part):
                _give(setting, step, part, slot, given, generator)
    return Walk(mode, steps, given, plain, compute(setting, mode, given))


def _give(
    setting: Setting,
    step: Step,
    part: str,
    slot: Slot,
    given: tuple[dict[Key, Given], dict[Key, Given]],
    generator: np.random.Generator,
) -> None:
    """The reference's array in place of both, and a cotangent for what is computed there."""
    to_flax, to_torch = slot.alignment.to_flax, slot.alignment.to_torch
    if setting.reference == "torch":
        theirs = getattr(step.torch, part)[slot.torch[0]]
        ours = to_flax(theirs)
    else:
        ours = getattr(step.flax, part)[slot.flax[0]]
        theirs = to_torch(ours)
    cotangent = generator.standard_normal(ours.shape)
    cotangents = "argument_cotangents" if part == "arguments" else "result_cotangents"
    for side, (call, places, value, pull) in enumerate(
        (
            (step.flax, slot.flax, ours, cotangent),
            (step.torch, slot.torch, theirs, to_torch(cotangent)),
        )
    ):
        each = given[side].setdefault(call.key, Given())
        dtype = getattr(call, part)[places[0]].dtype
        moves = is_float(getattr(call, part)[places[0]])
        wide = setting.dtype if moves and not side else dtype  # JAX promotes: nothing is rounded
        for place in places:
            getattr(each, part)[place] = np.asarray(value, wide)
        if moves:
            getattr(each, cotangents)[places[0]] = np.asarray(pull, dtype)


def compute(
    setting: Setting, mode: str, given: tuple[dict[Key, Given], dict[Key, Given]]
) -> tuple[Run, Run]:
    """Both sides on what their calls are given."""
    return one_side(setting, mode, given, 0), one_side(setting, mode, given, 1)


def one_side(
    setting: Setting,
    mode: str,
    given: tuple[dict[Key, Given], dict[Key, Given]],
    side: int,
    *,
    differentiate: bool = True,
) -> Run:
    """Flax (0) or PyTorch (1) on what its calls are given."""
    zeros = [np.zeros_like(c) for c in setting.cotangents[side]]
    return setting.run(
        side,
        train=mode == "train",
        cotangents=zeros if differentiate else None,
        given=given[side],
    )


@dataclass(frozen=True)
class Compared:
    """A comparison within the walk: of which step, and whether of what reaches it.

    Attributes:
        step: its number.
        arrival: whether it is of what reaches the layer: then it is its parent that departs.
        check: the comparison.
    """

    step: int
    arrival: bool
    check: Check


def compare(setting: Setting, walk: Walk, runs: tuple[Run, Run]) -> list[Compared]:
    """Everything that the layers computed from what they were given."""
    found: list[Compared] = []
    calls = [{call.key: call for call in run.calls} for run in runs]
    gradients = [run.given_gradients for run in runs]
    scale = checks.norm(
        g
        for each in gradients[0 if setting.reference == "flax" else 1].values()
        for part in (each.arguments, each.results)
        for g in part.values()
    )
    floor = setting.floor * scale
    for n, step in enumerate(walk.steps):
        ours, theirs = calls[0].get(step.flax.key), calls[1].get(step.torch.key)
        if ours is None or theirs is None:
            continue
        for part in ("arguments", "results"):
            arrival = part == "arguments"
            for k, slot in enumerate(getattr(step, part)):
                f, t = getattr(ours, part)[slot.flax[0]], getattr(theirs, part)[slot.torch[0]]
                name = "what reaches it" if arrival else "forward"
                subject = (
                    f"{'input' if arrival else 'output'} {k}"
                    if k
                    else ("its input" if arrival else "its output")
                )
                check = setting.compare(
                    f"{name}, {walk.mode} mode", subject, f, slot.alignment.to_flax(t)
                )
                found.append(Compared(n, arrival, check))
                g = [
                    sum(getattr(gradients[side][call.key], part)[place] for place in places)
                    for side, (call, places) in enumerate(
                        ((step.flax, slot.flax), (step.torch, slot.torch))
                    )
                    if call.key in gradients[side] and is_float(f)
                ]
                if len(g) == 2:
                    what = subject
                    check = setting.compare(
                        f"gradient, {walk.mode} mode",
                        what,
                        np.asarray(g[0]),
                        slot.alignment.to_flax(np.asarray(g[1])),
                        floor,
                    )
                    # What is given to a layer is its own; what it returns is used by its parent.
                    found.append(Compared(n, not arrival, check))
    return found + _entries(setting, walk, runs, floor)


def _entries(setting: Setting, walk: Walk, runs: tuple[Run, Run], floor: float) -> list[Compared]:
    """Gradients of parameters, and states, of the layers that hold them."""
    found = []
    paths = {}
    for n, step in enumerate(walk.steps):
        paths.setdefault(step.flax.key[0], n)
    torch = runs[1].parameter_gradients
    whole = {n: torch.get(n, np.zeros_like(a)) for n, a in setting.torch.parameters.items()}
    for link in setting.pairing.links:
        step = _holding(link, setting, paths)
        if step is None:
            continue
        if link.state:
            ours, theirs = link.of_flax(runs[0].states), link.to_flax(runs[1].states)
            check = setting.compare(f"state, {walk.mode} mode", link.name, ours, theirs)
        elif runs[0].parameter_gradients and runs[1].parameter_gradients:
            ours = link.of_flax(runs[0].parameter_gradients)
            theirs = link.to_flax(whole, gradient=True)
            check = setting.compare(f"gradient, {walk.mode} mode", link.name, ours, theirs, floor)
        else:
            continue
        found.append(Compared(step, False, check))
    return found


def _holding(link: Link, setting: Setting, paths: Mapping[str, int]) -> int | None:
    """The innermost step whose module holds an entry."""
    path = _holders(link, 0, setting)[0]
    parts = path.split("/") if path else []
    for n in range(len(parts), -1, -1):
        if "/".join(parts[:n]) in paths:
            return paths["/".join(parts[:n])]
    return None


def parent(walk: Walk, step: int) -> int | None:
    """The innermost step within which this one is made, on the side of PyTorch."""
    return _enclosing(walk, step, "torch")


def _enclosing(walk: Walk, step: int, side: str) -> int | None:
    calls = {call.key: call for call in walk.plain[0 if side == "flax" else 1].calls}
    numbers = {getattr(s, side).key: n for n, s in enumerate(walk.steps)}
    key = getattr(walk.steps[step], side).parent
    while key is not None:
        if key in numbers:
            return numbers[key]
        key = calls[key].parent
    return None


def departing(compared: Sequence[Compared]) -> list[Compared]:
    """Those that are out of their gates."""
    return [each for each in compared if each.check.status != OK]
