"""The report as text, page and JUnit; the command; the fixture."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from rich.console import Console

from parity_tests.port import Report, command
from parity_tests.port.__main__ import main
from parity_tests.port.fixture import verify_port  # noqa: F401  a fixture
from parity_tests.port.html import html
from parity_tests.port.junit import junit
from parity_tests.port.measure import Distance
from parity_tests.port.report import Check, Finding, Layer, Paired

MODELS = """
import flax.linen as linen, torch

flax_model = linen.Dense(2)
eager = linen.Dense(2, use_bias=False)

def torch_model():
    return torch.nn.Linear(3, 2)

def broken():
    raise RuntimeError("no weights here")
"""


def small(departs: bool) -> Report:
    """A report on two layers, written by hand."""
    good = Check("forward, eval mode", "output", Distance(1e-16, (0,), 1.0, 1.0), 1e-9)
    bad = Check("gradients, eval mode", "<a>/kernel", Distance(0.5, (0, 1), 2.0, 1.0), 1e-9)
    layers = [Layer("<a>", "b.a", ("Dense", "Linear")), Layer("c", "b.c", ("Dense", "Linear"))]
    report = Report(
        "linen", "torch", "float64", [good], [Paired("<a>", "b.a", "by order", "kernel (3, 2)")]
    )
    report.layers, report.notes = layers, ["a note"]
    if departs:
        report.checks.append(bad)
        layers[0].departs.append(bad)
        layers[0].findings.append(
            Finding("epsilon", True, "1e-5 & 1e-6", "set epsilon=", "<a>", "b.a")
        )
        report.first_key = ("<a>", "b.a")
    return report


def test_text_says_where_and_why():
    text = str(small(departs=True))
    assert text.startswith(
        "DEPART: 1 of 2 comparisons, first in Flax <a> (Dense) = PyTorch b.a (Linear)"
    )
    assert "worst at [0, 1]: the reference has 2, the other 1" in text
    assert "cause: epsilon (confirmed): 1e-5 & 1e-6; set epsilon=" in text
    assert "1 of 1 layers were paired by order" in text
    assert str(small(departs=False)).startswith("AGREE: 1 comparisons (linen and PyTorch")


class _Tags(HTMLParser):
    """Notes what is open, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone():
    for departs in (True, False):
        page = html(small(departs), "mine & theirs")
        tags = _Tags()
        tags.feed(page)
        assert not tags.open
        assert not tags.loads
        assert "url(" not in page
        assert "mine &amp; theirs" in page
        assert ("<a>" in page) is False
        assert ("1e-5 &amp; 1e-6" in page) is departs
        assert "width=device-width" in page


def test_junit_has_a_case_for_each_comparison_and_layer():
    root = Xml.fromstring(junit(small(departs=True), "port"))
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in root] == [
        ("comparisons", "2", "1"),
        ("layers", "2", "1"),
    ]
    failing = [
        case.get("name") for case in root.iter("testcase") if case.find("failure") is not None
    ]
    assert failing == ["<a>/kernel", "Flax <a> (Dense) = PyTorch b.a (Linear)"]
    assert not list(Xml.fromstring(junit(small(departs=False))).iter("failure"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models_of_mine.py").write_text(MODELS)
    (tmp_path / "shapes.toml").write_text("[x]\nshape = [4, 3]\n")
    yield tmp_path
    sys.modules.pop("models_of_mine", None)


def call(*arguments: str) -> int:
    return main([*arguments, "--inputs", "shapes.toml"])


def test_the_command(folder: Path, capsys):
    theirs = "models_of_mine:torch_model"
    assert call("models_of_mine:flax_model", theirs, "--steps", "1", "--html", "a.html") == 0
    out = capsys.readouterr().out
    assert out.startswith("AGREE: ")
    assert re.search(r"forward, eval mode\s+│\s+1 │", out)
    assert "agree" in (folder / "a.html").read_text()
    arguments = ("models_of_mine:eager", theirs, "--steps", "1", "--junit", "a.xml")
    assert call(*arguments) == 1
    assert "cause: bias missing (confirmed)" in capsys.readouterr().out
    assert Xml.fromstring((folder / "a.xml").read_text()).find(".//failure") is not None


@pytest.mark.parametrize(
    ("flax", "shapes", "words"),
    [
        ("models_of_mine", "", "flax_model: got 'models_of_mine', expected package.module:name"),
        ("models_of_mine:nothing", "", "'models_of_mine:nothing' raised AttributeError"),
        ("models_of_mine:broken", "", "raised RuntimeError: no weights here; expected a model"),
        ("models_of_mine:torch_model", "", "flax_model: got Linear, expected an instance of flax"),
        ("models_of_mine:flax_model", "[x]\nshape = [0]", "got shape [0] for 'x'"),
        ("models_of_mine:flax_model", "[x]\nsize = 3", "got ['size'] for 'x', expected some of"),
        ("models_of_mine:flax_model", "x = ", "cannot be read"),
        ("models_of_mine:flax_model", "[x]\nshape = [4]", "torch_model: the model raised"),
        ("models_of_mine:flax_model", "[x]\nfile = 'no.npy'", "'x' cannot be read"),
    ],
)
def test_the_command_says_what_is_wrong(flax, shapes, words, folder: Path, capsys):
    if shapes:
        (folder / "shapes.toml").write_text(shapes)
    assert call(flax, "models_of_mine:torch_model") == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("cannot compare: ")
    assert words in found.err
    assert "Traceback" not in found.err


def test_inputs_are_drawn_as_they_are_described(folder: Path):
    text = (
        '[a]\nshape = [2, 3]\n[b]\nshape = [4]\nintegers = 5\nlayout = "same"\n[c]\nvalue = true\n'
    )
    (folder / "shapes.toml").write_text(text)
    (a, b, c), layout = command.read_inputs(Path("shapes.toml"), 0)
    assert (a.shape, a.dtype.kind, b.dtype.kind, c) == ((2, 3), "f", "i", True)
    assert layout == {"0": "auto", "1": "same"}


def test_an_interruption_and_no_models(monkeypatch, capsys):
    assert main([]) == 2
    assert "models: got too few arguments" in capsys.readouterr().err

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted before anything was compared\n"


def test_colors_only_on_a_terminal(capsys):
    command.show(small(departs=True), Console(width=100))
    assert "\x1b[" not in capsys.readouterr().out
    command.show(small(departs=True), Console(width=100, force_terminal=True))
    assert "\x1b[" in capsys.readouterr().out


def test_the_fixture_fails_with_the_report(verify_port):  # noqa: F811
    import flax.linen as linen
    import numpy as np
    import torch

    rows, model = np.ones((2, 3)), torch.nn.Linear(3, 2)
    assert verify_port(linen.Dense(2), model, rows, train_steps=1).agree
    with pytest.raises(pytest.fail.Exception, match=r"(?s)DEPART.*cause: bias missing"):
        verify_port(linen.Dense(2, use_bias=False), model, rows, train_steps=1)
    with pytest.raises(pytest.fail.Exception, match="cannot be compared: weights: got layers"):
        verify_port(linen.Dense(5), model, rows)
