"""Names of TPUs, and a machine without the compiler."""

import importlib.util
import os

import pytest

from experiments.__main__ import main
from experiments.errors import ConfigError
from experiments.tpu import targets


def without(package: str, monkeypatch) -> None:
    """As if it were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )


@pytest.mark.parametrize(
    ("name", "full"),
    [("v5e", "v5e:2x2"), ("v5e:4x4", "v5e:4x4"), ("v5p", "v5p:2x2x1"), ("here", "here")],
)
def test_chips_may_be_left_open(name, full) -> None:
    """Then they are few."""
    assert targets.full_name(name) == full


@pytest.mark.parametrize("name", ["v7", "trillium", "v5e:many", "V5E", ""])
def test_unknown_names_are_refused_with_those_known(name, monkeypatch, capsys, tmp_path) -> None:
    """With or without libtpu, before anything is compiled."""
    without("libtpu", monkeypatch)
    arguments = ["tpu", "--targets", name, "--out", str(tmp_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"got {name!r}" in error
    for known in targets.TOPOLOGIES:
        assert known in error


@pytest.mark.parametrize(
    ("package", "options"),
    [("libtpu", ["--targets", "v6e"]), ("flatbuffers", ["--targets", "here", "--export", "x"])],
)
def test_what_is_not_installed_is_named(package, options, monkeypatch, capsys, tmp_path) -> None:
    """And how to install it."""
    without(package, monkeypatch)
    assert main(["tpu", "--quick", "--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert package in error
    assert "pip install" in error


def test_the_environment_is_given_back(monkeypatch) -> None:
    """On a machine with TPUs it is never touched."""
    with targets.quiet_libtpu():
        assert os.environ.get("ALLOW_MULTIPLE_LIBTPU_LOAD") == "1"
    assert "ALLOW_MULTIPLE_LIBTPU_LOAD" not in os.environ
    monkeypatch.setattr(targets, "has_tpus", lambda: True)
    with targets.quiet_libtpu():
        assert "ALLOW_MULTIPLE_LIBTPU_LOAD" not in os.environ


@pytest.mark.slow
def test_chips_that_libtpu_does_not_know() -> None:
    """Its word, and a name that it knows."""
    pytest.importorskip("libtpu")
    with targets.quiet_libtpu(), pytest.raises(ConfigError, match="try v5e:2x2"):
        targets.find("v5e:3x7")
