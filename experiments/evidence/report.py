"""`python -m experiments report`: what is known, as one page of HTML and as Markdown."""

import math
from collections.abc import Iterable
from pathlib import Path
from string import Template

import numpy as np
from rich.console import Console

from experiments.evidence import figures, page, seconds, stored, tables, why
from experiments.evidence.entries import ENTRIES
from experiments.evidence.options import ReportOptions, SweepOptions
from experiments.evidence.outcomes import Found, outcomes
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.sweep import Sweep
from experiments.records.files import prepare_folder, write_bytes, write_text
from experiments.records.runs import Record
from experiments.report.drawing import save
from experiments.report.progress import make_console
from experiments.studies.study import Result, grouped

HERE = Path(__file__).parent.parent
FIGURES = HERE / "figures"
COPIED = (
    "theory_conditioning",
    "theory_spectra",
    "photo_pictures",
    "twins",
    "parts",
    "sensitivity",
    "ppo",
)
"""Pictures that other commands have made."""


def run(options: ReportOptions, console: Console | None = None) -> int:
    """Read results, draw, write ``report.html`` and ``report.md`` with its pictures.

    Returns:
        0; also for results that are not complete, which the report says.

    Raises:
        DataError: for results that are missing or damaged.
    """
    console = make_console(console)
    paths = options.results or (FIGURES / "sweep.jsonl.gz",)
    results, records, notes = stored.read(*paths)
    places = (*filter(Path.is_dir, paths), *(file.parent for file in stored.files_of(*paths)))
    folders = dict.fromkeys(places)
    timed = seconds.read(*folders)
    prepare_folder(options.out)
    if options.pack:
        stored.pack(records, options.out / "sweep.jsonl.gz")
        seconds.pack(folders, options.out)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    found = outcomes(results)
    points = why.points(found, why.read(FIGURES / "theory_layers.json"))
    pictures = _draw(results, found, points, options.out)
    frame = Template((Path(__file__).parent / "frame.md").read_text(encoding="utf-8"))
    text = frame.substitute(
        _parts(results, records, timed, found, pictures),
        notes="".join(f"- {note}\n" for note in notes),
        layers=why.table(points).markdown(),
        correlation=f"{why.correlation(points):.2f}",
        **pictures,
    )
    write_text(options.out / "report.md", text)
    html = page.render(text, "Normalization in the gradient: the evidence", options.out)
    write_text(options.out / "report.html", html)
    console.print(f"written to {options.out}: report.html, report.md, {len(pictures)} pictures")
    return 0


def _draw(
    results: list[Result], found: dict[str, Found], points: list[why.Point], out: Path
) -> dict[str, str]:
    """What a picture shows -> its file: profiles, each problem, and those of the theory."""
    made = {"profiles": lambda: figures.draw(results), "why": lambda: why.draw(points)}
    for problem, some in grouped(results, "problem").items():
        target = found[problem].target if problem in found else None
        made[problem] = lambda some=some, target=target: figures.draw_problem(some, target)
    files = {name: save(draw, out / f"report_{name}", [".png"])[0] for name, draw in made.items()}
    for name in COPIED:
        files[name] = out / f"report_{name}.png"
        write_bytes(files[name], (FIGURES / f"{name}.png").read_bytes())
    return {name: file.name for name, file in files.items()}


def _parts(
    results: list[Result],
    records: list[Record],
    timed: tables.Seconds,
    found: dict[str, Found],
    pictures: dict[str, str],
) -> dict[str, str]:
    """What frame.md leaves open."""
    made = [f"### {table.title}\n\n{table.markdown()}" for table in tables.make(results, timed)]
    problems = []
    for problem in grouped(results, "problem"):
        title = PROBLEMS[problem].title
        picture = f"![curves and rates, {title}]({pictures[problem]})"
        problems.append(
            f"### {title}\n\n{picture}\n\n`python -m experiments sweep --problems {problem}`"
        )
    missing, lacking = _missing(results, found)
    return {
        "answer": "\n\n".join(_answer(found)),
        "missing": missing,
        "lacking": lacking,
        "tables": "\n\n".join([*made, tables.NOTES.strip()]),
        "problems": "\n\n".join(problems),
        "origin": _origin(records),
    }


def _answer(found: dict[str, Found]) -> Iterable[str]:
    for fresh, title in ((True, "Fresh problems"), (False, "Known problems")):
        some = {
            name: each
            for name, each in found.items()
            if PROBLEMS[name].fresh == fresh and tables.OURS in each.outcomes
        }
        if not some:
            yield f"**{title}**: nothing is known yet."
            continue
        loss = [each.loss_ratio(tables.OURS, each.best)[0] for each in some.values()]
        steps = [_steps(each) for each in some.values()]
        plain = {name: each.loss_ratio(tables.OURS, "plain")[0] for name, each in some.items()}
        worst = max(plain, key=lambda name: plain[name])
        worse = sum(ratio > 1.01 for ratio in plain.values())
        lower, reached = sum(r < 1 for r in loss), sum(map(math.isfinite, steps))
        yield (
            f"**{title}** ({len(some)}), against the best of plain, BatchNorm and LayerNorm, each "
            "at its best rate, medians of ten seeds: the default rule ends at a lower training "
            f"loss on {lower} of {len(loss)} (median ratio {_median(loss)}) and reaches the "
            f"baseline's on {reached}, in {_median(steps)} of the steps in the median. It is worse "
            f"than plain by more than 1 % on {worse}, at worst {_times(plain[worst])} "
            f"({PROBLEMS[worst].title})."
        )


def _steps(found: Found) -> float:
    ours, best = (float(np.median(found.outcomes[n].steps)) for n in (tables.OURS, found.best))
    return ours / best


def _shown(value: float) -> str:
    return "no finite number" if math.isinf(value) else f"{value:.2f}"


def _times(ratio: float) -> str:
    return (
        "where it does not learn at all" if math.isinf(ratio) else f"{ratio:.2f} times plain's loss"
    )


def _median(values: list[float]) -> str:
    return _shown(float(np.median(values)))


def _missing(results: list[Result], found: dict[str, Found]) -> tuple[str, str]:
    """What is said of it on the first screen, and what is said at the end."""
    wanted = Sweep(SweepOptions()).cells()
    lacking = set(wanted) - {result.cell for result in results}
    if not lacking:
        return "All cells of the protocol were run.", ""
    nothing, some = [], []
    for problem in PROBLEMS:
        cells = [cell for cell in wanted if cell.problem == problem]
        methods = dict.fromkeys(cell.method for cell in cells if cell in lacking)
        if set(cells) <= lacking:
            nothing.append(problem)
        elif methods:
            some.append(f"{problem} ({', '.join(methods)})")
    ours = sum(tables.OURS in each.outcomes for each in found.values())
    short = (
        f"> **Not complete:** {len(lacking)} of {len(wanted)} cells of the protocol have not been "
        f"run. {len(found)} of {len(PROBLEMS)} problems have their baselines and are judged, "
        f"{ours} have the default rule; the end of this page names what is missing."
    )
    whole = f"Nothing is there of {', '.join(nothing)}. " * bool(nothing)
    whole += f"A part is missing of {'; '.join(some)}." * bool(some)
    return short, f"**Missing.** {whole}"


def _origin(records: list[Record]) -> str:
    commits = sorted({str(record.get("git_sha", ""))[:10] for record in records})
    devices = sorted({str(record.get("device", "")) for record in records})
    return (
        f"{len(records)} runs; commits {', '.join(commits)}; {', '.join(devices)}. Methods: "
        + "; ".join(entry.title for entry in ENTRIES.values())
        + "."
    )
