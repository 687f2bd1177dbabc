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
from experiments.evidence.report import run
from experiments.evidence.sweep import Cell
from experiments.options import ReportOptions


def _records(method: str, stage: str, loss: float | None, key: str = "k") -> list[dict[str, Any]]:
    return [
        {
            "key": key + method + stage,
            **Cell("wine_sgd", method, stage)._asdict(),
            "rate_index": -4,
            "seed": seed,
            "final_train_loss": loss,
            "validation": loss,
            "validation_figure": 0.9,
            "test": 0.9 if stage == "final" else None,
            "curve": [2.0, loss],
            "commit": "0123456789abcdef",
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
    file = folder / "sweep.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    options = ReportOptions(results=sweep_file(tmp_path), pack=True, out=tmp_path / "out")
    assert run(options, Console(quiet=True)) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "lower training loss on 1 of 1 (median ratio 0.50)" in html
    assert "<strong>Not complete:</strong>" in html
    assert "$" not in re.sub(r"<script>.*</script>|data:[^\"]*", "", html)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert html.count("<img ") == 5
    text = (tmp_path / "out" / "report.md").read_text()
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (tmp_path / "out" / name).stat().st_size > 0
    packed = ReportOptions(results=tmp_path / "out" / "sweep.jsonl.gz", out=tmp_path / "again")
    assert run(packed, Console(quiet=True)) == 0
    assert (tmp_path / "again" / "report.md").read_text() == text


def test_of_a_cell_that_was_run_twice_the_last_counts(tmp_path: Path) -> None:
    file = tmp_path / "sweep.jsonl"
    twice = _records("plain", "screen", 1.0, "old") + _records("plain", "screen", 2.0, "new")
    file.write_text("".join(json.dumps(record) + "\n" for record in twice))
    (result,), records = stored.read(file)
    assert result.finals == {-4: [2.0, 2.0]}
    assert len(records) == 2


def test_damage_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(tmp_path / "none.jsonl")]) == 2
    assert "no such file; make it with python -m experiments sweep" in capsys.readouterr().err
    file = tmp_path / "sweep.jsonl"
    file.write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="line 1: got no curve, expected a sweep's"):
        stored.read(file)
    file.write_text('{"key": 1')
    with pytest.raises(DataError, match="damaged"):
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
