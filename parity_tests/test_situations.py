"""Random situations: both packages against the reference, and the reference against itself."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parity_tests.situations import (
    Block,
    Case,
    Frozen,
    Network,
    Structure,
    Wrapping,
    check,
    command,
    in_torch,
    script,
    values,
)
from parity_tests.situations.__main__ import main
from parity_tests.situations.case import KINDS
from parity_tests.situations.draw import SHARED, draw
from parity_tests.situations.plain import Pass
from parity_tests.situations.reference import Reference
from parity_tests.situations.roundings import Exact

#: One with which a few structures have every kind, how many of them the quick suite compiles, of
#: whose cases it takes every third, and how many make ten thousand cases.
SEED, QUICK, EACH = 280, {"jax": 12, "torch": 16}, 3
ALL = 10_000 // SHARED

Output = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def _cases(group: int, framework: str) -> list[Case]:
    """Those of a structure."""
    each = EACH if group < QUICK[framework] else 1
    return [draw(SEED, group * SHARED + n) for n in range(0, SHARED, each)]


def _failing(group: int, framework: str) -> str:
    """Scripts of those cases of a structure that fail."""
    found = ((case, check(case, framework)) for case in _cases(group, framework))
    return "\n\n".join(
        f"{outcome.words}\n{script.script(case, framework)}"
        for case, outcome in found
        if outcome.failed
    )


@pytest.mark.parametrize(
    ("framework", "group"),
    [
        pytest.param(name, group, marks=[] if group < count else pytest.mark.slow)
        for name, count in QUICK.items()
        for group in range(ALL)
    ],
)
def test_a_step_is_that_of_the_reference(framework: str, group: int) -> None:
    words = _failing(group, framework)
    assert not words, words


@pytest.mark.parametrize("framework", QUICK)
def test_the_quick_ones_are_of_every_kind(framework: str) -> None:
    cases = (case for group in range(QUICK[framework]) for case in _cases(group, framework))
    assert {kind for case in cases for kind in case.kinds} == set(KINDS)


#: One of each: convolutions, two calls, a normalizer before the activation, residual sums, dropout.
NETWORKS = (
    Network(3, (), (Block(4, "tanh"), Block(4, "silu", calls=2, residual="after")), 1, ((0,),)),
    Network(
        3,
        (7, 7),
        (Block(3, "softplus", stride=2), Block(3, "tanh", padding=1, residual="before")),
        2,
        ((0, 1),),
    ),
    Network(
        4, (), (Block(4, "sigmoid", normalizer="layer", dropout=True), Block(3, "silu")), 1, ((0,),)
    ),
    Network(
        4,
        (9,),
        (Block(4, "tanh", bias=False, normalizer="batch"), Block(4, "silu", normalizer="after")),
        1,
        ((0,),),
    ),
)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("frozen", [None, Frozen("entries", "block_1", "gradient")])
def test_the_reference_has_the_gradient_of_the_other_parameters(
    network: Network, frozen: Any
) -> None:
    """Of w~ and b~, by differences: whatever learns, with what does not held still."""
    structure = Structure(network, Wrapping(), "sgd", "none", frozen, 12, "float64")
    case = Case(structure, seed=3, ratio=2.0)
    arrays = values.make(case)
    reference = Reference(case, arrays, "jax", Exact())
    batch = arrays.batches[0]
    grads, reads = reference.plain(0, batch)
    rng = np.random.default_rng(0)
    for layer, plain in grads.items():
        reference.remember(layer, *map(np.concatenate, zip(*reads[layer], strict=True)))
        flat = {name: g.reshape(-1, g.shape[-1]) for name, g in plain.items()}
        at, inside = reference.into(layer, flat, set(flat))
        assert at is not None
        learning = arrays.learning[layer]["kernel"].reshape(at.sigma.shape)
        way = {name: rng.standard_normal(g.shape) for name, g in flat.items()}
        way["kernel"] *= learning

        def loss(size: float, layer: str = layer, at: Any = at, way: Any = way) -> float:
            """After a move in the coordinates."""
            kernel = size * way["kernel"] / at.sigma
            moves = {"kernel": kernel}
            if "bias" in way:
                moves["bias"] = size * way["bias"] - (at.mean * kernel).sum(0)
            params = {a: dict(d) for a, d in arrays.params.items()}
            for name, move in moves.items():
                old = params[layer][name]
                params[layer][name] = old + move.reshape(old.shape)
            run = Pass(structure, params, Exact())
            run.gradient(batch.x, batch.y, batch.masks, 1 / len(batch.x), network.reached[0])
            return run.loss

        expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
        actual = sum(np.sum(way[name] * inside[name]) for name in way)
        assert abs(actual - expected) <= 1e-7 * max(abs(expected), 1.0), layer


def test_a_script_is_the_case() -> None:
    for number in range(0, 40 * SHARED, 7):
        case = draw(1, number)
        names = {
            each.__name__: each for each in (Block, Case, Frozen, Network, Structure, Wrapping)
        }
        assert eval(script.literal(case), names) == case


def _wrong(monkeypatch: Patch, factor: float = 1.01) -> None:
    """PyTorch's steps are too long."""
    run = in_torch.run

    def longer(case: Case, arrays: Any) -> Any:
        start, (found, skipped) = arrays.params, run(case, arrays)
        longer = [
            {
                a: {b: start[a][b] + factor * (c - start[a][b]) for b, c in d.items()}
                for a, d in params.items()
            }
            for params in found
        ]
        return longer, skipped

    monkeypatch.setattr(in_torch, "run", longer)


FEW = ["--framework", "torch", "--cases", "3"]


def test_the_command_prints_the_kinds(capsys: Output) -> None:
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == list(KINDS)
    assert main([*FEW, "--kind", "convolution"]) == 2
    assert "kind: got 'convolution', expected some of dense, conv," in capsys.readouterr().err
    assert main([*FEW, "--kind", "dense", "conv"]) == 2
    assert "0 cases: got none that are dense, conv, expected some" in capsys.readouterr().err


def test_the_command_compares(capsys: Output) -> None:
    assert main([*FEW, "--kind", "conv", "float64"]) == 0
    out = capsys.readouterr().out
    assert "3 comparisons, 0 out of their bounds" in out


def test_a_failing_case_prints_a_script_that_fails(
    monkeypatch: Patch, capsys: Output, tmp_path: Any
) -> None:
    _wrong(monkeypatch)
    assert main([*FEW, "--kind", "adam", "float64", "--scripts", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "3 comparisons, 3 out of their bounds" in out
    assert len(list(tmp_path.iterdir())) == 3
    printed = re.split(r"\ncase \d|situations: the", out[out.index("from parity_tests") :])[0]
    for text in (printed, next(tmp_path.iterdir()).read_text()):
        exec(text, {})
        assert "where='" in capsys.readouterr().out
    simple = printed.split("case = ")[1]
    assert "optimizer='sgd'" in simple  # it has nothing to do with Adam
    assert "Wrapping()" in simple


def test_a_crash_and_an_interruption(monkeypatch: Patch, capsys: Output) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(in_torch, "run", broken)
    assert main([*FEW, "--no-simplify"]) == 2
    assert "RuntimeError: broken" in capsys.readouterr().out
    calls: list[int] = []

    def interrupted(*_: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return command.Outcome()

    monkeypatch.setattr(command, "check", interrupted)
    assert main([*FEW]) == 130
    assert "2 comparisons of 3, interrupted" in capsys.readouterr().out


def test_one_framework_is_enough(monkeypatch: Patch, capsys: Output) -> None:
    monkeypatch.setitem(sys.modules, "flax", None)
    assert main(["--cases", "1", "--kind", "conv", "float64"]) == 0
    assert capsys.readouterr().err.startswith("jax is left out: got no module named 'flax'")


def test_roundings_keep_what_is_constant() -> None:
    """A case whose weights begin at 0 has features that are constant until the second step."""
    from parity_tests.situations.compare import expectation

    structure = Structure(NETWORKS[0], Wrapping(), "sgd", "none", None, 12, "float64")
    case = replace(Case(structure, seed=1), start="zero")
    _, spread, _ = expectation(case, values.make(case), "torch")
    assert max(np.max(a) for layer in spread[0].values() for a in layer.values()) < 1e-12
