"""From what departs in single layers to the first of them, and to causes."""

from __future__ import annotations

from dataclasses import replace

from parity_tests.port.causes import CAUSES, Case
from parity_tests.port.checks import Setting
from parity_tests.port.report import DEPARTS, Check, Finding, Layer, Report
from parity_tests.port.sides.base import Key
from parity_tests.port.walk import Compared, Walk, compare, departing, parent, steps_of, walk

_NEVER = (True, 2**62)
#: So many pairs are left out, one at a time, to see whether they are pairs.
TRIED = 4
#: In so many layers causes are looked for.
DIAGNOSED = 12


def list_layers(setting: Setting, report: Report) -> None:
    """All layers that both sides have, in the order of the reference's calls."""
    report.layers = [
        Layer(
            _numbered(step.flax.key), _numbered(step.torch.key), (step.flax.kind, step.torch.kind)
        )
        for step in steps_of(setting, setting.runs["eval"])
    ]


def diagnose(setting: Setting, report: Report) -> None:
    """Walk through the modes in which something departs; note where it begins, and why."""
    names = [check.name for check in report.checks if check.status == DEPARTS]
    convention = [check.name for check in report.checks if check.convention]
    modes = [m for m in ("eval", "train") if any(f"{m} mode" in name for name in names)]
    others = [n for n in (*names, *convention) if "mode" not in n and n != "given weights"]
    if others and "train" not in modes and any(n != "initial states" for n in others):
        modes.append("train")
    found: dict[tuple[str, str], Layer] = {}
    times: dict[tuple[str, str], tuple[bool, int]] = {}
    for mode in modes:
        walked, groups = _walk(setting, mode)
        for number, group in groups:
            step = walked.steps[number]
            key = (_numbered(step.flax.key), _numbered(step.torch.key))
            layer = found.setdefault(key, Layer(*key, (step.flax.kind, step.torch.kind)))
            times[key] = min(
                times.get(key, _NEVER), *(_rank_in_time(setting, walked, c) for c in group)
            )
            layer.departs += [_described(walked, c) for c in group]
            paths = (step.flax.key[0], step.torch.key[0])
            again = key != paths and paths in found  # another call of a layer that departs
            if len(found) <= DIAGNOSED and not again:
                _explain(layer, Case(setting, walked, number, group))
    order = {(layer.flax, layer.torch): n for n, layer in enumerate(report.layers)}
    for key, layer in sorted(found.items(), key=lambda item: times[item[0]]):
        _set_conventions(layer)
        layer.departs.sort(key=_rank)
        if key in order:
            report.layers[order[key]] = layer
        else:
            report.layers.append(layer)
    report.first_key = next(
        (
            key
            for key in sorted(found, key=lambda key: times[key])
            if any(c.status == DEPARTS or report.strict for c in found[key].departs)
        ),
        None,
    )
    if report.first_key is None and not report.agree and not report.findings:
        report.notes.append(
            "no layer departs by itself: what departs adds up over the layers, or lies below what "
            "is seen of the models (a transformation within Flax, say)"
        )


def _walk(setting: Setting, mode: str) -> tuple[Walk, list[tuple[int, list[Compared]]]]:
    """A walk, and what departs in its layers.

    Modules that hold the same parameters need not end at the same place: one of them may hold the
    activation that stands behind the other. If several layers depart, and leaving out such a pair
    leaves fewer of them and no new one, it was none.
    """
    left_out: list[Key] = []
    walked = walk(setting, mode)
    groups = _departing(setting, walked)
    tried: set[Key] = set()
    while len(groups) > 1 and len(tried) < TRIED:
        keys = {walked.steps[n].flax.key for n, _ in groups}
        around = {parent(walked, n) for n in range(len(walked.steps))} - {_root(walked)}
        candidates = [walked.steps[n].flax.key for n, _ in groups if n in around]
        key = next((key for key in candidates if key not in tried), None)
        if key is None:
            break
        tried.add(key)
        again = walk(setting, mode, without=[*left_out, key])
        new = _departing(setting, again)
        if {again.steps[n].flax.key for n, _ in new} <= keys - {key}:
            walked, groups = again, new
            left_out.append(key)
    return walked, groups


def _departing(setting: Setting, walked: Walk) -> list[tuple[int, list[Compared]]]:
    return _by_layer(setting, walked, departing(compare(setting, walked, walked.runs)))


def _by_layer(
    setting: Setting, walked: Walk, compared: list[Compared]
) -> list[tuple[int, list[Compared]]]:
    """(step, what departs in it), those that depart first in front.

    What reaches a layer is computed by the one around it.
    """
    groups: dict[int, list[Compared]] = {}
    for each in compared:
        number = each.step
        if each.arrival:
            around = parent(walked, each.step)
            number = _root(walked) if around is None else around
        groups.setdefault(number, []).append(each)
    return sorted(groups.items(), key=lambda item: min(_time(setting, walked, c) for c in item[1]))


def _root(walked: Walk) -> int:
    return next(n for n, step in enumerate(walked.steps) if step.torch.parent is None)


def _rank_in_time(setting: Setting, walked: Walk, compared: Compared) -> tuple[bool, int]:
    """What departs forward comes first: gradients depart in front of it, too."""
    forward = compared.check.name.startswith(("forward", "what"))
    return not forward, _time(setting, walked, compared)


def _time(setting: Setting, walked: Walk, compared: Compared) -> int:
    """When the reference computes what is compared."""
    step = walked.steps[compared.step]
    call = step.flax if setting.reference == "flax" else step.torch
    return call.began if compared.arrival else call.ended


def _described(walked: Walk, compared: Compared) -> Check:
    """With the name of the layer that is reached."""
    if not compared.arrival:
        return compared.check
    step = walked.steps[compared.step]
    child = f"{_numbered(step.flax.key)} = {_numbered(step.torch.key)}"
    if compared.check.name.startswith("what"):
        name = compared.check.name.replace("what reaches it", "forward")
        return replace(compared.check, name=name, subject=f"what reaches {child}")
    return replace(compared.check, subject=f"the output of {child}")


def _explain(layer: Layer, case: Case) -> None:
    """Add causes: those that are confirmed, or those that are suspected."""
    found: list[Finding] = []
    for cause in CAUSES:
        if not cause.about(case):
            continue
        found += cause.find(case)
        if any(finding.confirmed for finding in found):
            break
    confirmed = [finding for finding in found if finding.confirmed]
    names = {(finding.name, finding.text) for finding in layer.findings}
    for finding in confirmed or found[:3]:
        if (finding.name, finding.text) not in names:
            layer.findings.append(finding)
    if any(finding.confirmed for finding in layer.findings):
        layer.findings = [finding for finding in layer.findings if finding.confirmed]


def _rank(check: Check) -> int:
    """Outputs, then states, then gradients."""
    return ("forward", "state", "gradient").index(check.name.split(",")[0])


def _set_conventions(layer: Layer) -> None:
    """What a convention explains is marked so."""
    conventions = [f for f in layer.findings if f.convention and f.confirmed]
    if conventions and len(conventions) == len(layer.findings):
        text = conventions[0].text
        layer.departs = [
            replace(check, convention=text) if check.name.startswith("state") else check
            for check in layer.departs
        ]


def _numbered(key: tuple[str, int]) -> str:
    """The path of a call; its number if it is not the first."""
    path, number = key
    return f"{path}#{number + 1}" if number else path
