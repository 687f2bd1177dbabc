"""The report in words, for a terminal, a log and a failing test."""

from __future__ import annotations

from parity_tests.port.report import CONVENTION, DEPARTS, OK, Check, Finding, Layer, Report

#: So many layers and comparisons are told in full.
LAYERS, CHECKS = 6, 4


def text(report: Report) -> str:
    """The whole report."""
    lines = [verdict(report), "", *summary(report)]
    first = report.first
    if first is not None:
        lines += ["", f"The first layer that departs: {named(first)}"]
        lines += [f"  {line}" for line in departure(first)]
        others = [x for x in report.layers if x.status == DEPARTS and x is not first]
        for layer in others[:LAYERS]:
            causes = "; ".join(brief(finding) for finding in layer.findings) or "no known cause"
            lines.append(f"It departs by itself, too: {named(layer)}: {causes}")
        if len(others) > LAYERS:
            lines.append(f"and {len(others) - LAYERS} more layers")
    for finding in report.findings:
        lines += ["", f"{finding.flax or finding.torch or 'The whole model'}: {finding}"]
    conventions = [layer for layer in report.layers if layer.status == CONVENTION]
    if conventions:
        names = ", ".join(layer.flax for layer in conventions[:LAYERS])
        more = f" and {len(conventions) - LAYERS} more" if len(conventions) > LAYERS else ""
        lines += ["", f"By convention, in {names}{more}: {conventions[0].departs[0].convention}"]
    unsure = [pair for pair in report.pairs if "by order" in pair.sureness]
    if unsure:
        lines += ["", f"{len(unsure)} of {len(report.pairs)} layers were paired by order"]
    if report.notes:
        lines += ["", *(f"note: {note}" for note in report.notes)]
    return "\n".join(lines)


def verdict(report: Report) -> str:
    """One line."""
    sides = f"{report.framework} and PyTorch, {report.dtype}, reference {report.reference}"
    if report.agree:
        conventions = sum(check.status == CONVENTION for check in report.checks)
        but = f", {conventions} of them but for a convention" if conventions else ""
        return f"AGREE: {len(report.checks)} comparisons{but} ({sides})"
    first = report.first
    where = f", first in {named(first)}" if first is not None else ""
    return f"DEPART: {len(report.departures)} of {len(report.checks)} comparisons{where} ({sides})"


def named(layer: Layer) -> str:
    """Path and class on both sides."""
    return " = ".join(
        f"{framework} {path or 'the model'}" + (f" ({kind})" if kind else "")
        for framework, path, kind in zip(
            ("Flax", "PyTorch"), (layer.flax, layer.torch), layer.kinds, strict=True
        )
    )


def brief(finding: Finding) -> str:
    """A cause without what to do about it."""
    sure = "confirmed" if finding.confirmed else "suspected"
    return f"{finding.name} ({sure}): {finding.text}"


def summary(report: Report) -> list[str]:
    """A line for each kind of comparison: how many, the worst error."""
    lines = []
    groups = grouped(report)
    width = max(map(len, groups), default=0)
    for name, every in groups.items():
        worst = max(every, key=lambda check: check.distance.error)
        status = group_status(every)
        line = f"{name:<{width}}  {len(every):>4}  worst {worst.distance.error:.1e}"
        line += f"  gate {worst.gate:.0e}  {status}"
        lines.append(line if status == OK else f"{line}, most at {worst.subject}")
    return lines


def grouped(report: Report) -> dict[str, list[Check]]:
    """The comparisons by what they compare."""
    groups: dict[str, list[Check]] = {}
    for check in report.checks:
        groups.setdefault(check.name, []).append(check)
    return groups


def group_status(checks: list[Check]) -> str:
    """The worst of them."""
    found = {check.status for check in checks}
    return next(status for status in (DEPARTS, CONVENTION, OK) if status in found)


def departure(layer: Layer) -> list[str]:
    """What departs in a layer, and why."""
    lines = [numbers(check) for check in layer.departs[:CHECKS]]
    if len(layer.departs) > CHECKS:
        lines.append(f"and {len(layer.departs) - CHECKS} more")
    if layer.findings:
        return lines + [f"cause: {finding}" for finding in layer.findings]
    return [*lines, "cause: none of those that are known repairs it"]


def numbers(check: Check) -> str:
    """Both numbers at the worst entry."""
    d = check.distance
    if d.reference != d.reference and not d.entry:
        return f"{check.name}: {check.subject} has other shapes"
    return (
        f"{check.name}: {check.subject}: error {d.error:.2e} (gate {check.gate:.0e}); worst at "
        f"{list(d.entry)}: the reference has {d.reference:.9g}, the other {d.other:.9g}"
    )
