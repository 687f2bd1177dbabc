"""The verifier against faults planted in real networks, and against networks that are right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parity_tests.port import self_test
from parity_tests.port.faults import FAULTS, Fault
from parity_tests.port.self_test import attempt, correct, planted

#: One of each API, both sides, a state, a gradient, a dropout; the cheap ones.
CHEAP = (
    ("convnet", "flax", "slope 0.2"),
    ("lstm", "torch", "gradient through time stopped"),
    ("gpt", "flax", "dropout left on"),
    ("resnet", "torch", "momentum inverted"),
)


def _named(pair: str, side: str, name: str) -> Fault:
    (found,) = [f for f in FAULTS if (f.pair, f.side, f.name) == (pair, side, name)]
    return found


@pytest.mark.parametrize("key", CHEAP, ids="-".join)
def test_a_planted_fault_is_found_in_its_layer_and_named(key: tuple[str, str, str]):
    (trial,) = planted((_named(*key),))
    outcome = attempt(trial)
    assert outcome.right, outcome.text


@pytest.mark.parametrize("number", [0, 3])
def test_a_correct_pair_raises_no_alarm(number: int):
    outcome = attempt(correct(number + 1)[number])
    assert outcome.right, outcome.text


def test_every_fault_can_be_planted():
    for fault in FAULTS:
        module = fault.module()
        (module.torch_model if fault.side == "torch" else module.flax_model)(**fault.knobs)


def test_an_old_text_that_is_not_there_is_an_error():
    fault = replace(FAULTS[0], edits=(("no such text", ""),))
    with pytest.raises(ValueError, match="got 0 times 'no such text' in resnet, expected once"):
        fault.module()


def test_every_pair_and_every_cause_of_the_list_has_a_fault():
    causes = {fault.cause for fault in FAULTS}
    assert causes >= {
        *("momentum inverted", "unbiased running variance", "epsilon", "padding", "dtype"),
        *("transposed kernel", "flipped kernel", "GELU variant", "attention scale"),
        *("dropout left on", "bias missing", "channel order before a flatten", "initial states"),
    }
    assert {fault.pair for fault in FAULTS} == set(self_test.PAIRS)


@pytest.mark.slow
def test_the_whole_self_test():
    assert self_test.run() == 0
