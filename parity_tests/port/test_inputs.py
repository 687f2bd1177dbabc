"""What models read and return: images, tokens, masks; arrays, tuples, mappings, dataclasses."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest

from parity_tests.port import CannotCompare, inputs, structure
from parity_tests.port.layout import alignments, choose, flattened_image
from parity_tests.port.measure import distance
from parity_tests.port.sides.base import Call, Run

IMAGE = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)


def run(*calls: tuple[str, Any]) -> Run:
    return Run([], False, {}, [Call((kind, 0), kind, {0: value}) for kind, value in calls])


def test_images_are_moved_and_nothing_else():
    tokens, sequence = np.zeros((2, 7), int), np.ones((2, 7, 3))
    mask = np.ones((2, 1, 7, 7), bool)
    read = inputs.read((IMAGE, tokens, sequence, mask, True), "float64")
    assert read.positional[0].dtype == np.float64
    assert read.positional[4] is True
    layouts = inputs.images(read, run(("Conv2d", IMAGE.astype(float))), "auto")
    assert layouts == {"0": "channels", "1": "same", "2": "same", "3": "same"}
    moved = inputs.for_flax(read, layouts).positional
    assert [np.shape(x) for x in moved] == [(2, 5, 4, 3), (2, 7), (2, 7, 3), (2, 1, 7, 7), ()]
    # Of rank 3 only what a convolution reads as it is; of rank 4 nothing without convolutions.
    layouts = inputs.images(read, run(("Conv1d", sequence)), "auto")
    assert layouts["2"] == "channels"
    assert set(inputs.images(read, run(("Linear", sequence)), "auto").values()) == {"same"}
    told = inputs.images(read, run(), {"0": "channels"})
    assert told["0"] == "channels"


def test_inputs_of_both_sides():
    theirs = inputs.read({"x": IMAGE}, "float64")
    ours = inputs.read({"x": np.moveaxis(IMAGE, 1, -1)}, "float64")
    assert inputs.compared(theirs, ours) == {"x": "channels"}
    assert inputs.compared(theirs, theirs) == {"x": "same"}


def test_alignments():
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 4))
    names = [a.name for a in alignments((2, 4, 4, 4), (2, 4, 4, 4))]
    assert names == ["channels", "same"]  # rank 4: an image, unless the numbers say otherwise
    assert choose(x, np.moveaxis(x, 1, -1)).name == "channels"
    assert choose(x, x).name == "same"
    assert choose(x, x + 1).name == "channels"
    assert [a.name for a in alignments((2, 5, 5), (2, 5, 5))] == ["same", "channels"]
    assert choose(np.zeros((2, 6)), np.zeros((3, 4))).name == "reshaped"
    assert choose(np.zeros((2, 6)), np.zeros((2, 5))) is None
    for torch, flax in (
        ((2, 3, 5, 4), (2, 5, 4, 3)),
        ((2, 3, 5, 4), (2, 20, 3)),
        ((5, 2, 3), (2, 5, 3)),
    ):
        x = np.random.default_rng(0).normal(size=torch)
        for each in alignments(torch, flax):
            assert each.to_flax(x).shape == flax
            np.testing.assert_array_equal(each.to_torch(each.to_flax(x)), x)
    image = flattened_image((5, 4, 3))
    flat = IMAGE.reshape(2, -1)
    np.testing.assert_array_equal(image.to_flax(flat), np.moveaxis(IMAGE, 1, -1).reshape(2, -1))
    np.testing.assert_array_equal(image.to_torch(image.to_flax(flat)), flat)


def test_structures_are_flattened_alike():
    a, b = np.zeros(2), np.ones(3)

    @dataclasses.dataclass
    class Output:
        logits: Any
        hidden: Any = None

    pair = namedtuple("Pair", "logits hidden")
    for value in (OrderedDict(logits=a, hidden=(b,)), Output(a, [b]), pair(a, (b,))):
        assert [name for name, _ in structure.flatten(value)] == ["logits", "hidden.0"]
        assert structure.named(value)
    assert [name for name, _ in structure.flatten((a, (b, None)))] == ["0", "1.0"]
    assert structure.flatten(a) == [("", a)]
    assert not structure.named((a, b))
    with pytest.raises(CannotCompare, match="outputs: got object at 'x', expected arrays"):
        structure.flatten({"x": object()})


def test_distance():
    a = np.array([[1.0, 2.0], [3.0, -np.inf]])
    b = np.array([[1.0, 2.0], [4.0, -np.inf]])
    found = distance(b, a)
    assert (found.entry, found.reference, found.other) == ((1, 0), 3.0, 4.0)
    assert found.error == pytest.approx(1 / np.sqrt(14))
    assert distance(a, a).error == 0
    assert distance(a, np.where(np.isinf(a), 0, a)).error == np.inf
    assert distance(np.zeros(2), np.zeros(3)).error == np.inf
    assert distance(np.full(2, 1e-20), np.zeros(2), floor=1.0).error < 1e-19
