"""The report as one page of HTML that needs nothing else, and is read on a phone, too."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from parity_tests.port.report import CONVENTION, DEPARTS, OK, Check, Finding, Layer, Report
from parity_tests.port.text import group_status, grouped, named, verdict

_STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --page: #fff; --box: #f6f8fa;
  --ok: #1a7f37; --departs: #cf222e; --convention: #9a6700; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --page: #0d1117; --box: #161b22; --ok: #3fb950; --departs: #f85149; --convention: #d29922; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem; max-width: 62rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; line-height: 1.3; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); }
code, td.number { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.badge { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; color: #fff;
  font-size: .85rem; white-space: nowrap; }
.ok { background: var(--ok); } .departs { background: var(--departs); }
.convention { background: var(--convention); }
.box { border: 1px solid var(--line); border-left: .3rem solid var(--departs); border-radius: .4rem;
  background: var(--box); padding: .75rem 1rem; margin: .75rem 0; }
.box.convention-box { border-left-color: var(--convention); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; color: var(--soft); font-weight: 600; white-space: nowrap; }
th, td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
td.number { white-space: nowrap; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media (max-width: 38rem) { body { padding: .8rem; }
  thead { display: none; }
  tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  td { display: block; border: 0; padding: .05rem 0; }
  td::before { content: attr(data-label) " "; color: var(--soft); font-size: .8rem; } }
"""
_CLASSES = {OK: "ok", DEPARTS: "departs", CONVENTION: "convention"}


def html(report: Report, title: str = "Is the port right?") -> str:
    """A document: verdict, the first layer that departs and its cause, all comparisons and layers.

    Args:
        report: what was found.
        title: of the page.
    """
    parts = [
        f"<h1>{_badge(OK if report.agree else DEPARTS, report.agree)} {escape(title)}</h1>",
        f"<p>{escape(verdict(report))}</p>",
    ]
    first = report.first
    if first is not None:
        parts += ["<h2>The first layer that departs</h2>", _departure(first)]
    parts += [_finding_box(finding) for finding in report.findings]
    parts += ["<h2>Comparisons</h2>", _comparisons(report)]
    parts.append("<h2>Layers, in the order of their calls</h2>")
    if first is not None:
        parts.append(
            '<p class="soft">Each is fed with what the reference\'s layer reads, so that a fault '
            "does not show in the layers behind it.</p>"
        )
    parts.append(_layers(report))
    parts += ["<h2>Which layer is which</h2>", _pairs(report)]
    if report.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        parts += ["<h2>Notes</h2>", f"<ul>{notes}</ul>"]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _badge(status: str, agree: bool | None = None) -> str:
    word = status if agree is None else ("agree" if agree else "depart")
    return f'<span class="badge {_CLASSES[status]}">{word}</span>'


def _departure(layer: Layer) -> str:
    kind = "box" if layer.status == DEPARTS else "box convention-box"
    lines = [f"<p><strong>{escape(named(layer))}</strong></p>"]
    lines += [_cause(finding) for finding in layer.findings]
    if not layer.findings:
        lines.append("<p>None of the known causes repairs it.</p>")
    lines.append(_numbers(layer.departs))
    return f'<div class="{kind}">{"".join(lines)}</div>'


def _cause(finding: Finding) -> str:
    sure = "confirmed" if finding.confirmed else "suspected"
    return (
        f"<p><strong>{escape(finding.name)}</strong> ({sure}): {escape(finding.text)}.</p>"
        f'<p class="soft">{escape(finding.mend)}</p>'
    )


def _finding_box(finding: Finding) -> str:
    where = finding.flax or finding.torch or "the whole model"
    return f'<div class="box"><p><code>{escape(where)}</code></p>{_cause(finding)}</div>'


def _numbers(checks: Iterable[Check]) -> str:
    rows = [
        (
            escape(f"{check.name}: {check.subject}"),
            _number(f"{check.distance.error:.2e}"),
            _number(f"{check.distance.reference:.9g}"),
            _number(f"{check.distance.other:.9g}"),
            _number(str(list(check.distance.entry))),
        )
        for check in checks
    ]
    return _table(("what", "error", "the reference", "the other", "worst entry"), rows)


def _comparisons(report: Report) -> str:
    rows = []
    for name, checks in grouped(report).items():
        worst = max(checks, key=lambda check: check.distance.error)
        rows.append(
            (
                escape(name),
                _badge(group_status(checks)),
                str(len(checks)),
                _number(f"{worst.distance.error:.1e}"),
                _number(f"{worst.gate:.0e}"),
                f"<code>{escape(worst.subject)}</code>",
            )
        )
    return _table(("comparison", "", "arrays", "worst error", "gate", "worst"), rows)


def _layers(report: Report) -> str:
    rows = []
    for layer in report.layers:
        more = ""
        if layer.departs:
            names = ", ".join(finding.name for finding in layer.findings) or "no known cause"
            more = f"<details><summary>{escape(names)}</summary>{_departure(layer)}</details>"
        rows.append(
            (
                f"<code>{escape(layer.flax or 'the model')}</code> {escape(layer.kinds[0])}",
                f"<code>{escape(layer.torch or 'the model')}</code> {escape(layer.kinds[1])}",
                _badge(layer.status) + more,
            )
        )
    return _table(("Flax", "PyTorch", ""), rows)


def _pairs(report: Report) -> str:
    rows = [
        (
            f"<code>{escape(pair.flax)}</code>",
            f"<code>{escape(pair.torch)}</code>",
            escape(pair.sureness),
            escape(pair.shapes),
        )
        for pair in report.pairs
    ]
    return _table(("Flax", "PyTorch", "paired", "entries"), rows)


def _number(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-label="{escape(heading)}">{cell}</td>'
            for heading, cell in zip(headings, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
