"""The report in words, for a terminal, a log and a failing test."""

from __future__ import annotations

from parity_tests.port.report import CONVENTION, OK, Check, Layer, Report


def text(report: Report) -> str:
    """The whole report."""
    lines = [verdict(report), ""]
    lines += summary(report)
    first = report.first
    if first is not None:
        lines += ["", f"The first layer that departs: {named(first)}"]
        lines += [f"  {line}" for line in departure(first)]
        others = [layer for layer in report.layers if layer.departs and layer is not first]
        for layer in others[:10]:
            lines += [f"It departs, too: {named(layer)}"]
            lines += [f"  {line}" for line in departure(layer)]
        if len(others) > 10:
            lines += [f"and {len(others) - 10} more layers"]
    for finding in report.findings:
        lines += ["", f"{'Of the whole model' if not finding.flax else finding.flax}: {finding}"]
    unsure = [pair for pair in report.pairs if "order" in pair.sureness]
    if unsure:
        lines += ["", f"{len(unsure)} of {len(report.pairs)} layers were paired by order"]
    if report.notes:
        lines += ["", *(f"note: {note}" for note in report.notes)]
    return "\n".join(lines)


def verdict(report: Report) -> str:
    """One line."""
    sides = f"{report.frameworks} and PyTorch, {report.dtype}"
    if report.agree:
        conventions = sum(check.status == CONVENTION for check in report.checks)
        but = f", {conventions} of them but for a convention" if conventions else ""
        return f"AGREE: {len(report.checks)} comparisons of {sides}{but}"
    first = report.first
    where = f", first in {named(first)}" if first is not None else ""
    count = len(report.departures)
    return f"DEPART: {count} of {len(report.checks)} comparisons of {sides}{where}"


def named(layer: Layer) -> str:
    """Path and class on both sides."""
    flax = f"{layer.flax or 'the model'} ({layer.kinds[0]})" if layer.kinds[0] else layer.flax
    torch = f"{layer.torch or 'the model'} ({layer.kinds[1]})" if layer.kinds[1] else layer.torch
    return f"Flax {flax} = PyTorch {torch}"


def summary(report: Report) -> list[str]:
    """A line for each kind of comparison: how many, the worst error."""
    names = dict.fromkeys(check.name for check in report.checks)
    lines = []
    width = max(map(len, names), default=0)
    for name in names:
        every = [check for check in report.checks if check.name == name]
        worst = max(every, key=lambda check: check.distance.error)
        failing = [check for check in every if check.status != OK]
        status = "ok" if not failing else failing[0].status
        if any(check.status not in (OK, CONVENTION) for check in failing):
            status = "departs"
        line = f"{name:<{width}}  {len(every):>4}  worst {worst.distance.error:.1e}"
        line += f"  gate {worst.gate:.0e}  {status}"
        if failing:
            line += f" at {worst.subject}"
        lines.append(line)
    return lines


def departure(layer: Layer) -> list[str]:
    """What departs in a layer, and why."""
    lines = [numbers(check) for check in layer.departs[:6]]
    if len(layer.departs) > 6:
        lines.append(f"and {len(layer.departs) - 6} more")
    if layer.findings:
        lines += [f"cause: {finding}" for finding in layer.findings]
    else:
        lines.append("cause: none of those that are known repairs it")
    return lines


def numbers(check: Check) -> str:
    """Both numbers at the worst entry."""
    d = check.distance
    if not d.entry and d.reference != d.reference:
        return f"{check.name} of {check.subject}: other shapes"
    return (
        f"{check.name} of {check.subject}: error {d.error:.2e} (gate {check.gate:.0e}); worst "
        f"entry {list(d.entry)}: the reference has {d.reference:.9g}, the other {d.other:.9g}"
    )
