"""Markdown as one self-contained page of HTML: pictures inside, nothing from the network."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --mark: #d55e00; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { line-height: 1.2; } h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
th { cursor: pointer; vertical-align: bottom; } strong { color: var(--mark); }
blockquote { border-left: 4px solid var(--mark); margin-left: 0; padding-left: 1rem; }
code { background: var(--soft); padding: .1em .3em; border-radius: 3px; overflow-wrap: anywhere; }
nav { font-size: .9rem; } nav a { margin-right: 1rem; white-space: nowrap; }
@media (max-width: 40rem) { body { font-size: 15px; } }
@media print { body { max-width: none; } nav { display: none; } }
@media print { h2, img, tr { break-inside: avoid; } }
"""

#: A click on a heading sorts the rows by that column, numbers as numbers.
SCRIPT = """
for (const cell of document.querySelectorAll("th")) cell.addEventListener("click", () => {
  const body = cell.closest("table").tBodies[0], at = cell.cellIndex;
  const down = cell.dataset.down = cell.dataset.down === "1" ? "0" : "1";
  const value = row => { const t = row.cells[at].textContent.trim(), n = parseFloat(t);
    return t === "never" ? Infinity : Number.isNaN(n) ? t : n; };
  const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0)
    : typeof a === "number" ? -1 : 1;
  [...body.rows].sort((a, b) => order(value(a), value(b)) * (down === "1" ? 1 : -1))
    .forEach(row => body.append(row));
});
"""


def render(text: str, title: str, folder: Path) -> str:
    """The page.

    Args:
        text: Markdown with tables; relative pictures lie in the folder.
        title: of the window.
        folder: where.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'<img src="([^":]+)"', lambda found: _inside(folder / found[1]), body)
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    places: list[tuple[str, str]] = []

    def anchored(found: re.Match[str]) -> str:
        level, heading = found[1], found[2]
        name = re.sub(r"[^a-z0-9]+", "-", html.unescape(heading).lower()).strip("-")
        if level == "2":
            places.append((name, heading))
        return f'<h{level} id="{name}">{heading}</h{level}>'

    body = re.sub(r"<h([23])>(.*?)</h\1>", anchored, body)
    links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading in places)
    body = body.replace("</h1>", f"</h1>\n<nav>{links}</nav>", 1)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _inside(file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}"'
