"""The comparisons of two whole models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity_tests.port.errors import CannotCompare, called
from parity_tests.port.layout import Alignment, alignments, channels_last, choose
from parity_tests.port.measure import Distance, distance
from parity_tests.port.pairing import Pairing
from parity_tests.port.report import OK, Check, Finding
from parity_tests.port.running_variance import BiasedVariance
from parity_tests.port.sides.base import Arrays, Inputs, Run, Side, Training, is_float
from parity_tests.tolerances import PORT_STEPS


@dataclass
class Setting:
    """Two models that are paired, with the same numbers in both.

    Attributes:
        flax: the model in linen or nnx.
        torch: the model in PyTorch.
        reference: which of them is right: "torch" or "flax".
        pairing: what belongs together.
        inputs: of Flax and of PyTorch.
        layouts: name of an input -> "channels" or "same".
        gate: the error that is allowed.
        floor: see `tolerances.PORT_FLOOR`.
        dtype: in which both compute.
        parameters: of Flax and of PyTorch.
        states: of Flax and of PyTorch.
        alignments: of the outputs.
        names: of the outputs.
        selected: the places of the outputs that are compared, of Flax and of PyTorch.
        seed: of cotangents.
        images: path of a dense layer in Flax -> the image that is flattened before it.
        plain: shapes of Flax and a run of PyTorch, from before the numbers were copied.
        cotangents: of the float outputs of Flax and of PyTorch.
        runs: of Flax and of PyTorch by mode.
    """

    flax: Side
    torch: Side
    reference: str
    pairing: Pairing
    inputs: tuple[Inputs, Inputs]
    layouts: dict[str, str]
    gate: float
    floor: float
    dtype: str
    parameters: tuple[Arrays, Arrays] = ({}, {})
    states: tuple[Arrays, Arrays] = ({}, {})
    alignments: list[Alignment] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    selected: tuple[list[int], list[int]] = ((), ())  # type: ignore[assignment]
    seed: int = 0
    images: dict[str, tuple[int, ...]] = field(default_factory=dict)
    plain: Any = None
    cotangents: Any = ()
    runs: dict[str, tuple[Run, Run]] = field(default_factory=dict)

    def run(self, side: int, **options: Any) -> Run:
        """A pass of Flax (0) or PyTorch (1) on its numbers; its errors are said in words."""
        model, name = ((self.flax, "flax_model"), (self.torch, "torch_model"))[side]
        states = options.pop("states", self.states[side])
        return called(
            name,
            lambda: model.run(self.parameters[side], states, self.inputs[side], **options),
        )

    def compare(
        self, name: str, subject: str, flax: np.ndarray, torch: np.ndarray, floor: float = 0.0
    ) -> Check:
        """Two arrays in Flax's layout."""
        other, reference = (flax, torch) if self.reference == "torch" else (torch, flax)
        if np.isnan(reference.astype(np.float64)).any():
            raise CannotCompare(
                f"{name}: got NaN in {subject} of the reference, expected numbers; NaN is equal to "
                "nothing"
            )
        return Check(name, subject, distance(other, reference, floor), self.gate)

    def drawn(self, runs: tuple[Run, Run], seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Random ones for the float outputs of Flax and of PyTorch, zero for what is left out."""
        generator = np.random.default_rng(seed)
        found: tuple[list[np.ndarray], ...] = ([], [])
        drawn = {}
        for place, alignment in zip(self.selected[1], self.alignments, strict=True):
            shape = runs[1].outputs[place][1].shape
            drawn[place] = (generator.standard_normal(shape), alignment)
        other = {
            f: a.to_flax(drawn[t][0])
            for f, t, a in zip(*self.selected, self.alignments, strict=True)
        }
        mine = {t: value for t, (value, _) in drawn.items()}
        for side, values in enumerate((other, mine)):
            for place, (_, array) in enumerate(runs[side].outputs):
                if is_float(np.empty(0, array.dtype)):
                    value = values.get(place)
                    value = np.zeros(array.shape) if value is None else value
                    found[side].append(np.asarray(value, array.dtype))
        return found[0], found[1]


def match_outputs(
    flax: Run, torch: Run, wanted: Sequence[str] | None
) -> tuple[list[int], list[int], list[str]]:
    """Places of the outputs in both, and their names.

    Raises:
        CannotCompare: the structures differ.
    """
    ours = [name for name, _ in flax.outputs]
    theirs = [name for name, _ in torch.outputs]
    by_name = flax.named and torch.named
    if wanted is not None:
        absent = [n for n in wanted if n not in ours or n not in theirs]
        if absent:
            raise CannotCompare(
                f"outputs: got {absent[0]!r}, expected names that both have: Flax returns "
                f"{ours}, PyTorch {theirs}"
            )
        return [ours.index(n) for n in wanted], [theirs.index(n) for n in wanted], list(wanted)
    if by_name and set(ours) == set(theirs):
        return list(range(len(ours))), [theirs.index(n) for n in ours], ours
    if by_name or len(ours) != len(theirs) or not ours:
        raise CannotCompare(
            f"outputs: got another structure, Flax returns {_described(flax)}, PyTorch "
            f"{_described(torch)}, expected the same; choose some with outputs=[names]"
        )
    names = ours if flax.named else theirs
    return list(range(len(ours))), list(range(len(theirs))), [n or "output" for n in names]


def _described(run: Run) -> str:
    return ", ".join(f"{n or 'output'} {tuple(a.shape)}" for n, a in run.outputs) or "nothing"


def align_outputs(setting: Setting, flax: Run, torch: Run) -> None:
    """Decide how each output lies on the two sides: by shape, or by what agrees."""
    setting.alignments = []
    for f, t, name in zip(*setting.selected, setting.names, strict=True):
        ours, theirs = flax.outputs[f][1], torch.outputs[t][1]
        if isinstance(ours, np.ndarray):
            found = choose(theirs, ours)
        else:
            every = alignments(tuple(theirs.shape), tuple(ours.shape))
            found = every[0] if every else None
        if found is None:
            raise CannotCompare(
                f"outputs: got shape {tuple(ours.shape)} for {name!r} in Flax and "
                f"{tuple(theirs.shape)} in PyTorch, expected the same entries, channels last in "
                "Flax"
            )
        setting.alignments.append(found)


def forward(setting: Setting, runs: tuple[Run, Run], mode: str) -> list[Check]:
    """Every output."""
    checks = []
    for f, t, name, alignment in zip(
        *setting.selected, setting.names, setting.alignments, strict=True
    ):
        ours, theirs = runs[0].outputs[f][1], alignment.to_flax(runs[1].outputs[t][1])
        checks.append(setting.compare(f"forward, {mode} mode", name, ours, theirs))
    return checks


def gradients(setting: Setting, runs: tuple[Run, Run], mode: str) -> list[Check]:
    """Of every parameter and of every float input."""
    name = f"gradients, {mode} mode"
    torch = runs[1].parameter_gradients
    whole = {n: torch.get(n, np.zeros_like(a)) for n, a in setting.torch.parameters.items()}
    pairs = [
        (link.name, link.of_flax(runs[0].parameter_gradients), link.to_flax(whole, gradient=True))
        for link in setting.pairing.links
        if not link.state
    ]
    floor = setting.floor * norm(p[1] if setting.reference == "flax" else p[2] for p in pairs)
    checks = [setting.compare(name, *each, floor=floor) for each in pairs]
    for key, theirs in runs[1].input_gradients.items():
        if key in runs[0].input_gradients:
            if setting.layouts.get(key) == "channels":
                theirs = channels_last(theirs)
            ours = runs[0].input_gradients[key]
            checks.append(setting.compare(name, f"input {key}", ours, theirs))
    return checks


def spare(setting: Setting) -> list[Check]:
    """Entries of paired layers that only one side has."""
    both = (("Flax", setting.pairing.spare_flax), ("PyTorch", setting.pairing.spare_torch))
    return [
        Check("entries on one side", f"{name} {shape} of {side}", Distance(float("inf")), 0.0)
        for side, entries in both
        for name, shape in entries.items()
    ]


def states(
    setting: Setting, after: tuple[Arrays, Arrays], name: str, floor: float = 0.0
) -> list[Check]:
    """Every state that both sides have."""
    return [
        setting.compare(name, link.name, link.of_flax(after[0]), link.to_flax(after[1]), floor)
        for link in setting.pairing.links
        if link.state
    ]


def one_mode(setting: Setting, mode: str, *, outputs_only: bool = False) -> list[Check]:
    """Outputs and gradients in one mode; its runs and cotangents are noted in the setting."""
    train = mode == "train"
    if not setting.cotangents:
        setting.cotangents = setting.drawn(setting.plain, setting.seed)
    theirs, ours = (setting.run(n, train=train, cotangents=setting.cotangents[n]) for n in (1, 0))
    setting.runs[mode] = (ours, theirs)
    found = forward(setting, (ours, theirs), mode)
    return found if outputs_only else found + gradients(setting, (ours, theirs), mode)


def several_passes(setting: Setting, steps: int) -> list[Check]:
    """States after some passes in train mode with parameters at rest."""
    if not any(link.state for link in setting.pairing.links):
        return []
    after = tuple(_passes(setting, n, steps) for n in (0, 1))
    checks = states(setting, after, f"states after {steps} passes")  # type: ignore[arg-type]
    if all(check.status == OK for check in checks):
        return checks
    setting.torch.rewriting.append(BiasedVariance())  # type: ignore[attr-defined]
    try:
        biased = _passes(setting, 1, steps)
    finally:
        setting.torch.rewriting.pop()  # type: ignore[attr-defined]
    repaired = states(setting, (after[0], biased), "")
    return [
        replace(check, convention=BiasedVariance.text)
        if check.status != OK and other.status == OK
        else check
        for check, other in zip(checks, repaired, strict=True)
    ]


def _passes(setting: Setting, side: int, steps: int) -> Arrays:
    states = setting.states[side]
    for _ in range(steps):
        cotangents = None if side else setting.cotangents[0]  # with the program that is there
        states = setting.run(side, states=states, train=True, cotangents=cotangents).states
    return states


def initial_states(setting: Setting) -> tuple[list[Check], list[Finding]]:
    """What states begin with, if neither side was trained yet; and which differ."""
    counters = [a for n, a in setting.torch.states.items() if n.endswith("num_batches_tracked")]
    untrained = bool(counters) and not any(np.any(a) for a in counters)
    if not untrained or not getattr(setting.flax, "drawn", False):
        return [], []
    both = (setting.flax.states, setting.torch.states)
    checks = states(setting, both, "initial states", floor=1.0)
    torch_names = {link.flax: link.torch[0] for link in setting.pairing.links if link.state}
    sides = ("PyTorch", "Flax") if setting.reference == "torch" else ("Flax", "PyTorch")
    findings = [
        Finding(
            "initial states",
            True,
            f"{check.subject} begins with {check.distance.reference:.6g} in {sides[0]}, with "
            f"{check.distance.other:.6g} in {sides[1]}",
            "let both begin with means of zero and variances of one",
            check.subject.partition("/")[2].rpartition("/")[0],
            torch_names[check.subject].rpartition(".")[0],
        )
        for check in checks
        if check.status != OK
    ]
    return checks, findings


def given_weights(setting: Setting) -> list[Check]:
    """The numbers that each side was given."""
    return [
        setting.compare(
            "given weights", link.name, link.of_flax(arrays[0]), link.to_flax(arrays[1]), floor=1e-9
        )
        for link in setting.pairing.links
        for arrays in [setting.states if link.state else setting.parameters]
    ]


def lock_step(setting: Setting, optimizer: str, steps: int) -> list[Check]:
    """The same steps on both sides: how far the change of every parameter differs."""
    slopes = setting.runs["train"][0].parameter_gradients
    size, slope = norm(setting.parameters[0].values()), norm(slopes.values())
    if not slope:
        return []
    count = sum(a.size for a in slopes.values())
    training = Training(
        optimizer,
        rate=0.01 * size / slope if optimizer == "SGD" else 0.001,
        epsilon=0.1 * slope / count**0.5,  # where a gradient is but rounding, so is its step
        steps=steps,
        fixed=setting.pairing.fixed,
    )
    ours, theirs = (
        side.train(
            setting.parameters[n],
            setting.states[n],
            setting.inputs[n],
            setting.cotangents[n],
            training,
        )[-1]
        for n, side in enumerate((setting.flax, setting.torch))
    )
    pairs = []
    for link in setting.pairing.links:
        if not link.state:
            before = link.of_flax(setting.parameters[0])
            pairs.append((link.name, link.of_flax(ours) - before, link.to_flax(theirs) - before))
    floor = setting.floor * norm(p[1] if setting.reference == "flax" else p[2] for p in pairs)
    name, gate = f"{steps} steps of {optimizer}", PORT_STEPS[setting.dtype]
    return [replace(setting.compare(name, *each, floor=floor), gate=gate) for each in pairs]


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Of all these arrays together."""
    return float(np.sqrt(sum(np.sum(np.square(a.astype(np.float64))) for a in arrays)))
