"""Whole models in linen, nnx and PyTorch: that agree, that depart, that cannot be compared."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import sys
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from parity_tests.port import CannotCompare, verify
from parity_tests.port.report import CONVENTION

IMAGES = np.random.default_rng(0).normal(size=(4, 3, 6, 5))


@pytest.fixture(autouse=True)
def _as_a_user():
    """The frameworks as they come: float32, ranks promoted; `verify` sets what it needs."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


class _Torch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.3)
        self.inner = torch.nn.Linear(4, 6)
        self.last = torch.nn.Linear(6, 2)

    def forward(self, x: Any) -> Any:
        x = self.norm(self.conv(x)).mean((2, 3))
        return self.last(F.gelu(self.inner(self.drop(x))))


class _Linen(linen.Module):
    approximate: bool = False
    on: bool = False
    dtype: Any = None

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = linen.Conv(4, (3, 3), use_bias=False, dtype=self.dtype)(x)
        x = linen.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x).mean((1, 2))
        x = linen.Dropout(0.3)(x, deterministic=not (train or self.on))
        x = linen.gelu(linen.Dense(6, dtype=self.dtype)(x), approximate=self.approximate)
        return linen.Dense(2, dtype=self.dtype)(x)


class _Inherits(nnx.Linear):
    """Its `__call__` is its base's."""


class _Nnx(nnx.Module):
    def __init__(self, momentum: float = 0.9, approximate: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=momentum, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.inner = nnx.Linear(4, 6, rngs=rngs)
        self.last = _Inherits(6, 2, rngs=rngs)
        self.rngs = nnx.Rngs(noise=1)
        self.approximate = approximate

    def __call__(self, x: Any) -> Any:
        x = self.drop(self.norm(self.conv(x)).mean((1, 2)))
        x += 0 * jax.random.normal(self.rngs.noise(), ())
        return self.last(nnx.gelu(self.inner(x), approximate=self.approximate))


@pytest.fixture(scope="module")
def agreeing():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        return verify(_Linen(), _Torch(), IMAGES)


def test_a_right_port_agrees_but_for_a_convention(agreeing):
    assert agreeing.agree, str(agreeing)
    assert agreeing.dtype == "float64"
    names = {check.name for check in agreeing.checks}
    assert names >= {
        f"{what}, {m} mode" for what in ("forward", "gradients") for m in ("eval", "train")
    }
    assert names >= {"states after 3 passes", "3 steps of SGD", "3 steps of Adam"}
    assert "dropout, train mode" in names
    assert "dropout, eval mode" not in names
    conventions = [c for c in agreeing.checks if c.status == CONVENTION]
    assert [check.subject for check in conventions] == ["batch_stats/BatchNorm_0/var"]
    assert [f.name for f in agreeing.causes] == ["unbiased running variance"]
    assert not dataclasses.replace(agreeing, strict=True).agree
    assert {pair.torch: pair.sureness for pair in agreeing.pairs}["conv"].startswith("the only one")
    assert any("images, [N, C, *space] in PyTorch" in note for note in agreeing.notes)


def test_two_faults_are_found_in_nnx_and_nothing_is_changed():
    ours, theirs = _Nnx(0.1, approximate=True), _Torch().train()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(ours, (nnx.Param, nnx.BatchStat))))
    weights = copy.deepcopy(theirs.state_dict())
    counts = [int(c[...]) for c in (ours.drop.rngs.count, ours.rngs.noise.count)]
    drawn = torch.get_rng_state()
    report = verify(ours, theirs, IMAGES, reference="flax")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not jax.config.jax_enable_x64
    assert [finding.name for finding in report.causes] == ["GELU variant", "momentum inverted"]
    assert all(finding.confirmed for finding in report.causes)
    assert (report.first.flax, report.first.torch) == ("", "")  # the GELU is the model's own
    assert "what reaches last = last" in report.first.departs[0].subject
    after = nnx.to_pure_dict(nnx.state(ours, (nnx.Param, nnx.BatchStat)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights.values(), theirs.state_dict().values(), strict=True)
    )
    assert theirs.training
    assert theirs.conv.weight.dtype == torch.float32
    assert theirs.conv.weight.grad is None
    assert not theirs.conv._forward_hooks
    assert [int(c[...]) for c in (ours.drop.rngs.count, ours.rngs.noise.count)] == counts
    assert "__call__" not in vars(_Inherits)
    assert nnx.Linear.__call__.__module__ == "flax.nnx.nn.linear"


def test_dropout_that_is_left_on():
    report = verify(_Linen(on=True), _Torch(), IMAGES)
    assert not report.agree
    left = [finding for finding in report.findings if finding.name == "dropout left on"]
    assert [(finding.flax, finding.confirmed) for finding in left] == [("Dropout_0", True)]
    assert {check.name for check in report.departures} == {"dropout, eval mode"}


def test_a_model_that_cannot_compute_in_float64_is_compared_in_float32():
    report = verify(_Linen(dtype=jnp.float32), _Torch(), IMAGES, train_steps=1)
    assert report.dtype == "float32"
    assert report.agree, str(report)


class _TorchTokens(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.attend = torch.nn.MultiheadAttention(4, 2, batch_first=True)
        self.cell = torch.nn.LSTM(4, 5, batch_first=True)

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.embed(ids)
        x = x + self.attend(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        return {"last": self.cell(x)[0], "embedded": x}


class _LinenTokens(linen.Module):
    @linen.compact
    def __call__(self, ids: Any, mask: Any) -> Any:
        x = linen.Embed(7, 4)(ids)
        x = x + linen.MultiHeadDotProductAttention(2)(x, mask=mask[:, None, None, :])
        return {"embedded": x, "last": linen.RNN(linen.LSTMCell(5))(x)}


def test_tokens_masks_attention_and_recurrence():
    ids = np.random.default_rng(0).integers(0, 7, (2, 6))
    mask = np.arange(6) < np.array([[6], [4]])
    inputs = {"ids": ids, "mask": mask}
    report = verify(_LinenTokens(), _TorchTokens(), inputs, reference="flax", train_steps=2)
    assert report.agree, str(report)
    assert {"forward, eval mode"} <= {c.name for c in report.checks if c.subject == "last"}
    assert any("PyTorch adds two biases" in note for note in report.notes)
    told = {pair.torch: pair.flax for pair in report.pairs}
    assert told["attend[value]"] == "MultiHeadDotProductAttention_0/value"
    layers = {layer.torch: layer.flax for layer in report.layers}
    assert layers["cell"] == "RNN_0"
    assert layers["attend"] == "MultiHeadDotProductAttention_0"


def dense(features: int = 2, **options: Any) -> Any:
    return linen.Dense(features, **options)


class _Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x))


class _Drawing(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(2)(x) + jax.random.normal(self.make_rng("noise"), (1, 2))


class _Nan(torch.nn.Linear):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * float("nan")


class _Normalized(linen.Module):
    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return linen.BatchNorm(not train, momentum=0.9)(x)


class _Pair(torch.nn.Linear):
    def forward(self, x: Any) -> Any:
        return super().forward(x), x


ROWS = np.random.default_rng(0).normal(size=(5, 3))
LINEAR = torch.nn.Linear(3, 2)
UNFIT = [
    (dense(), _Two(), ROWS, {}, r"left in Flax: none · in PyTorch: a weight \(3, 3\), bias \(3,\)"),
    (dense(), LINEAR, np.full((5, 3), np.nan), {}, "15 entries of '0' that are not finite"),
    (dense(), LINEAR, ROWS[0, 0], {}, "inputs: got no array"),
    (dense(), LINEAR, (), {}, "inputs: got no array"),
    (
        dense(),
        _Pair(3, 2),
        ROWS,
        {},
        r"outputs: got another structure.*output \(5, 2\).*0 \(5, 2\), 1",
    ),
    (dense(4), LINEAR, ROWS, {}, r"left in Flax: .*weight \(3, 4\)"),
    (_Drawing(), LINEAR, ROWS, {}, "rngs: the model draws random numbers and got no key"),
    (LINEAR, LINEAR, ROWS, {}, "flax_model: got Linear, expected an instance of flax"),
    (dense(), dense(), ROWS, {}, "torch_model: got Dense, expected an instance of torch"),
    (dense(), LINEAR, ROWS, {"weights": "best"}, "weights: got 'best'"),
    (dense(), LINEAR, ROWS, {"weights": {"": "fc"}}, "weights: got 'fc'"),
    (dense(), LINEAR, ROWS, {"reference": "jax"}, "reference: got 'jax'"),
    (dense(), LINEAR, ROWS, {"layout": "channels"}, "expected a rank of at least 3"),
    (dense(), LINEAR, ROWS, {"layout": {"x": "same"}}, "layout: got 'same' for 'x'"),
    (dense(), LINEAR, ROWS, {"train_steps": 0}, "train_steps: got 0"),
    (dense(), LINEAR, ROWS, {"outputs": ["logits"]}, "outputs: got 'logits'"),
    (dense(), LINEAR, ROWS, {"flax_inputs": ROWS[:, :2]}, "left in Flax"),
    (dense(), _Nan(3, 2), ROWS, {}, "forward, eval mode: got NaN in output of the reference"),
    (
        _Normalized(),
        torch.nn.BatchNorm1d(3),
        ROWS[:1],
        {},
        "Expected more than 1 value per channel",
    ),
    (dense(), LINEAR, {"y": ROWS}, {}, "torch_model: the model raised TypeError"),
]


@pytest.mark.parametrize(("ours", "theirs", "inputs", "options", "words"), UNFIT)
def test_what_cannot_be_compared_says_why(ours, theirs, inputs, options, words):
    with pytest.raises(CannotCompare, match=words):
        verify(ours, theirs, inputs, **options)


def test_given_weights_are_compared():
    model = torch.nn.Linear(3, 3)
    kernel, bias = (p.detach().numpy().T for p in model.parameters())
    right = {"params": {"kernel": kernel, "bias": bias}}
    assert verify(dense(3), model, ROWS, "given", variables=right, train_steps=1).agree
    wrong = {"params": {"kernel": kernel.T, "bias": bias}}
    report = verify(dense(3), model, ROWS, "given", variables=wrong, train_steps=1)
    assert "given weights" in {check.name for check in report.departures}
    assert [finding.name for finding in report.causes] == ["transposed kernel"]


def test_frozen_parameters_are_compared_and_stay_frozen():
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    with torch.no_grad():
        assert verify(dense(), model, ROWS, train_steps=1).agree
    assert not model.weight.requires_grad


def test_the_docstring_example():
    assert doctest.testmod(sys.modules["parity_tests.port.verify"]) == (0, 4)


def test_a_bias_that_one_side_has_not_is_found_though_it_is_zero():
    model = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(model.bias)
    report = verify(dense(use_bias=False), model, ROWS, train_steps=1)
    assert [finding.name for finding in report.causes] == ["bias missing"]
    assert {"entries on one side", "forward, eval mode"} <= {c.name for c in report.departures}
    report = verify(dense(use_bias=False), model, ROWS, train_steps=1, randomize=False)
    assert {check.name for check in report.departures} == {"entries on one side"}


def test_a_cast_to_bfloat16_is_named():
    report = verify(dense(dtype=jnp.bfloat16), LINEAR, ROWS, train_steps=1)
    assert report.dtype == "float32"
    assert [(finding.name, finding.confirmed) for finding in report.causes] == [("dtype", True)]
    assert "numbers of bfloat16" in report.causes[0].text
