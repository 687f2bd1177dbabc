"""Keys: the same for the same numbers, another for whatever could change them."""

import numpy as np
import pytest

from experiments.records import content
from experiments.records.content import code_digest, content_key
from experiments.records.pictures import from_text, to_text
from experiments.workloads.photo import Photo

PICTURE = np.random.default_rng(0).random((4, 6, 3))
ORIGIN = {"versions": {"jax": "1"}, "device": "cpu", "git_sha": "a"}


def test_key_is_that_of_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options, data, code, versions and device count; the commit and the order do not."""
    key = content_key(ORIGIN, Photo(PICTURE), {"seeds": 1, "steps": 2})
    again = content_key(ORIGIN | {"git_sha": "b"}, Photo(PICTURE), {"steps": 2, "seeds": 1})
    assert again == key
    others = {
        content_key(ORIGIN, Photo(PICTURE), {"seeds": 2, "steps": 2}),
        content_key(ORIGIN, Photo(PICTURE * 0.5), {"seeds": 1, "steps": 2}),
        content_key(ORIGIN | {"versions": {"jax": "2"}}, Photo(PICTURE), {"seeds": 1, "steps": 2}),
        content_key(ORIGIN | {"device": "gpu"}, Photo(PICTURE), {"seeds": 1, "steps": 2}),
    }
    monkeypatch.setattr(content, "code_digest", lambda: "another")
    others.add(content_key(ORIGIN, Photo(PICTURE), {"seeds": 1, "steps": 2}))
    assert len(others | {key}) == 6


def test_code_that_trains_counts(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment changes nothing, a number does; plots and tests are not read."""
    package, here = tmp_path / "jaxnorm", tmp_path / "experiments"
    for folder in (package / "tests", here / "records", here / "training", here / "report"):
        folder.mkdir(parents=True)
    for path in (
        package / "a.py",
        package / "tests/t.py",
        here / "report/r.py",
        here / "methods.py",
    ):
        path.write_text("x = 1\n")
    for path in (here / "studies/grid.py", here / "studies/tasks.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    monkeypatch.setattr(content.jaxnorm, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(content, "__file__", str(here / "records/content.py"))
    digest = code_digest.__wrapped__()
    (package / "a.py").write_text("x  =  1  # one\n")
    for path in (package / "tests/t.py", here / "report/r.py"):
        path.write_text("x = 2\n")
    assert code_digest.__wrapped__() == digest
    (here / "methods.py").write_text("x = 2\n")
    assert code_digest.__wrapped__() != digest


def test_pictures_survive_the_record() -> None:
    """To the 256 steps of a color."""
    np.testing.assert_allclose(from_text(to_text(PICTURE)), PICTURE, atol=0.5 / 255 + 1e-9)
