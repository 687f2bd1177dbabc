"""The report: from results to a page, with what is missing and what is damaged said."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.errors import DataError
from experiments.evidence import figures, page, stored
from experiments.evidence.entries import ENTRIES
from experiments.evidence.options import ReportOptions
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.report import run
from experiments.evidence.sweep import Cell


def _records(
    method: str, stage: str, loss: float | None, finished: str = "10:00", rate: int = -4
) -> list[dict[str, Any]]:
    return [
        {
            "key": finished + method + stage,
            **Cell("wine_sgd", method, stage)._asdict(),
            "rate_index": rate,
            "seed": seed,
            "final_train_loss": loss,
            "validation": loss,
            "validation_figure": 0.9,
            "test": 0.9 if stage == "final" else None,
            "curve": [2.0, loss],
            "finished": f"2026-01-02T{finished}:00+00:00",
            "git_sha": "0123456789abcdef",
            "device": "a machine",
        }
        for seed in range(2 if stage == "screen" else 10)
    ]


def sweep_file(folder: Path) -> Path:
    """Results of one problem, as a sweep writes them."""
    losses = {"plain": 2.0, "batchnorm": 1.0, "layernorm": 3.0, "neuronwise": 0.5}
    records = [
        record
        for method, loss in losses.items()
        for stage in ("screen", "final")
        for record in _records(method, stage, loss)
    ]
    return _write(folder / "sweep.jsonl", records)


def _write(file: Path, records: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    options = ReportOptions(results=(sweep_file(tmp_path),), pack=True, out=tmp_path / "out")
    assert run(options, Console(quiet=True)) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "lower training loss on 1 of 1 (median ratio 0.50)" in html
    assert "<strong>Not complete:</strong>" in html
    judged = f"1 of {len(PROBLEMS)} problems have their baselines and are judged, 1 have"
    assert judged in html
    assert "Nothing is there of mnist_sgd, mnist_adam," in html
    assert "A part is missing of wine_sgd (groupnorm," in html
    assert "$" not in re.sub(r"<script>.*</script>|data:[^\"]*", "", html)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert html.count("<img ") == 10
    text = (tmp_path / "out" / "report.md").read_text()
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (tmp_path / "out" / name).stat().st_size > 0
    packed = ReportOptions(results=(tmp_path / "out" / "sweep.jsonl.gz",), out=tmp_path / "again")
    assert run(packed, Console(quiet=True)) == 0
    assert (tmp_path / "again" / "report.md").read_text() == text


def test_a_rule_that_does_not_learn_is_said_not_to(tmp_path: Path) -> None:
    """Its loss is no number of times that of plain."""
    records = [json.loads(line) for line in sweep_file(tmp_path).read_text().splitlines()]
    ours = [record for record in records if record["method"] == "neuronwise"]
    for record in ours:
        record |= {"final_train_loss": None, "validation": None, "test": None, "curve": [2.0, None]}
    options = ReportOptions(results=(_write(tmp_path / "sweep.jsonl", records),), out=tmp_path)
    assert run(options, Console(quiet=True)) == 0
    title = PROBLEMS["wine_sgd"].title
    assert (
        f"at worst where it does not learn at all ({title})" in (tmp_path / "report.md").read_text()
    )


def test_of_a_cell_that_was_run_twice_the_run_that_finished_last_counts(tmp_path: Path) -> None:
    """Whatever the order in the file."""
    early, late = (
        _records("plain", "screen", loss, at) for loss, at in ((1, "10:00"), (2, "11:00"))
    )
    for records in (early + late, late + early):
        found = stored.read(_write(tmp_path / "sweep.jsonl", records))
        assert [result.finals for result in found.results] == [{-4: [2, 2]}]
        assert found.records == late
        assert found.notes == [
            "1 of 1 cells were run more than once; the run that finished last counts"
        ]


def test_parts_are_joined_cell_by_cell(tmp_path: Path) -> None:
    """Files, packed files and folders, in any order, each once; what is packed is the whole."""
    one = _records("plain", "screen", 1.0) + _records("plain", "final", 1.0)
    two = _records("bnp", "screen", 2.0) + _records("plain", "final", 3.0, "12:00")
    a = _write(tmp_path / "a" / "sweep.jsonl", one)
    stored.pack(two, tmp_path / "sweep_b.jsonl.gz")
    parts = [a, tmp_path / "sweep_b.jsonl.gz"]
    whole = stored.read(*parts)
    assert [result.cell[1:] for result in whole.results] == [
        ("plain", "screen"),
        ("plain", "final"),
        ("bnp", "screen"),
    ]
    assert whole.results[1].finals == {-4: [3.0] * 10}
    for paths in (parts[::-1], [tmp_path], [tmp_path, *parts]):
        assert stored.read(*paths) == whole
    out = tmp_path / "out"
    assert run(ReportOptions(results=(tmp_path,), pack=True, out=out), Console(quiet=True)) == 0
    packed = stored.read(out)
    assert (packed.results, packed.records) == whole[:2]
    assert "1 of 3 cells were run more than once" in (out / "report.md").read_text()
    with pytest.raises(DataError, match=r"got no sweep\*.jsonl and no .* in this folder"):
        stored.read(tmp_path / "a", _write(tmp_path / "c" / "rates.jsonl", one).parent)


def test_what_does_not_fit_together_is_said(tmp_path: Path) -> None:
    """Lost lines, other names, a final run at a rate that is not its screen's best."""
    records = [
        *_records("plain", "screen", 1.0),
        *_records("plain", "final", 2.0, rate=-2),
        *_records("bnp", "screen", 1.0)[:1],
        *_records("bnp", "final", 1.0, "10:00")[:-1],
        *_records("bnp", "final", 1.0, "09:00"),
        *(record | {"problem": "new"} for record in _records("plain", "screen", 1.0)),
    ]
    found = stored.read(_write(tmp_path / "sweep.jsonl", records))
    assert [result.cell[1:] for result in found.results] == [
        ("plain", "screen"),
        ("plain", "final"),
        ("bnp", "final"),
    ]
    assert {record["problem"] for record in found.records} == {"wine_sgd", "new"}
    expected = [
        "wine_sgd, bnp, screen: .* has lost some of its runs; it is passed over",
        "wine_sgd, bnp, final: .* has lost some of its runs; it is passed over",
        "not of this protocol, and left out: new/plain/screen",
        "wine_sgd, plain, final: run at the rate 0.32, but the best of its screen is 0.1: .*again",
        "wine_sgd, bnp, final: the screen that its rate is from is not there",
    ]
    for note, pattern in zip(found.notes, expected, strict=True):
        assert re.fullmatch(pattern, note)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curve": None}, "got None for curve, expected a list of numbers"),
        ({"stage": "third"}, "got 'third' for stage, expected one of screen, final"),
        ({"seed": "0"}, "got '0' for seed, expected a whole number"),
        ({"final_train_loss": "low"}, "got 'low' for final_train_loss, expected a number or null"),
        ({"finished": "today"}, "got 'today' for finished, expected a time with its zone"),
    ],
)
def test_a_damaged_field_is_named_with_its_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first, second = _records("plain", "screen", 1.0)
    file = _write(tmp_path / "sweep.jsonl", [first, second | change])
    with pytest.raises(DataError, match=rf"line 2 is damaged \({message}\); remove the line"):
        stored.read(file)


def test_damage_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(tmp_path / "none.jsonl")]) == 2
    assert "no such file; make it with python -m experiments sweep" in capsys.readouterr().err
    file = _write(tmp_path / "sweep.jsonl", _records("plain", "screen", 1.0))
    file.write_text(file.read_text()[:-9])
    with pytest.raises(DataError, match=r"line 2 is damaged .*; remove the line"):
        stored.read(file)
    file.write_text('[1]\n{"key": 1}\n')
    with pytest.raises(DataError, match=r"line 1 is damaged \(it has no key\)"):
        stored.read(file)
    packed = tmp_path / "sweep.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(DataError, match="damaged"):
        stored.read(packed)


def test_every_method_is_drawn_in_its_own_way() -> None:
    assert len({str(figures.style_of(name)) for name in ENTRIES}) == len(ENTRIES)


def test_headings_are_linked_and_escaped(tmp_path: Path) -> None:
    text = "# A\n\n## B & <c>\n\n| x | y |\n| :-- | --: |\n| 1 | 2 |\n"
    html = page.render(text, "A < B", tmp_path)
    assert '<h2 id="b-c">B &amp; &lt;c&gt;</h2>' in html
    assert '<a href="#b-c">B &amp; &lt;c&gt;</a>' in html
    assert "<title>A &lt; B</title>" in html
    assert '<div class="wide"><table>' in html
