"""Training loops of Flax with the rule: how many lines change, and that they learn as they did."""

import difflib
import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parent / "loops"
PAGE = Path(__file__).parents[1] / "README.md"
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 6, 6, 1)).astype("float32") * 3 + 5
LABELS = RNG.integers(0, 10, 32)
#: Loop -> arguments of its `train`.
LOOPS = {
    "mnist": (IMAGES, LABELS, 30),
    "imagenet": (IMAGES, LABELS, 20),
    "ppo": (60, 2),
    "nnx_model": (IMAGES, LABELS, 30),
    "bare": (IMAGES, LABELS, 30),
}


def changed(name):
    """Lines to change, to add or to take away, in the text as it is found."""
    texts = [(FOLDER / f"{name}{end}.py").read_text() for end in ("_plain", "")]
    plain, ours = ([line for line in text.splitlines() if line.strip()] for text in texts)
    codes = difflib.SequenceMatcher(None, plain, ours, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in codes if kind != "equal")


@pytest.fixture(autouse=True)
def _as_a_user():
    """Flax as it comes, in float32."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_learns_as_it_did(name):
    """From the same first loss, to a lower one (or a higher reward)."""
    results = [
        np.asarray(importlib.import_module(f"jaxnorm.tests.loops.{name}{end}").train(*LOOPS[name]))
        for end in ("_plain", "")
    ]
    plain, ours = results
    first = (slice(None), 0) if plain.ndim > 1 else 0
    np.testing.assert_allclose(ours[first], plain[first], rtol=1e-5)
    assert np.isfinite(ours).all()
    if name == "ppo":
        assert ours[:, -5:].mean() > 1.5 * ours[:, :5].mean()
    else:
        # Few steps of a rate that suits the plain network take some of these not far either.
        assert ours[-1] < max(0.7 * ours[0], 1.05 * plain[-1])
    assert not np.array_equal(ours, plain)


def test_few_lines_change():
    """As many as the page says, and at most five."""
    rows = re.findall(r"\[after\]\(tests/loops/(\w+)\.py\) \| (\d+) \|", PAGE.read_text())
    assert {name: int(count) for name, count in rows} == {name: changed(name) for name in LOOPS}
    assert max(map(changed, LOOPS)) <= 5
