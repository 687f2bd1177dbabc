"""Random cases through the oracle and everything that claims to equal it.

Examples are derandomized: the suite that passes here passes anywhere. What is left out is what no
arithmetic can do: to divide a rounding error by a variance that is zero (see `_continuous`).
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_tests import cases, oracle
from parity_tests.cases import Case
from parity_tests.implementations import Implementation, load, quick
from parity_tests.implementations.jax import JaxFunctional
from parity_tests.implementations.torch import TorchFunctional
from parity_tests.matrix import compare
from parity_tests.oracle import Knobs

IMPLEMENTATIONS = load()
QUICK = quick()
FUNCTIONS: list[Implementation] = [JaxFunctional(), TorchFunctional()]
#: Few shapes: JAX compiles every operation once for each.
SHAPES = ((48, 7, 6), (24, 12, 8))
GENERAL = tuple(family for family in cases.FAMILIES if family not in cases.SHAPES)


@st.composite
def _continuous(draw: st.DrawFn, family: str, dtype: str) -> dict[str, float]:
    """Shrinkage, damping and epsilon for which the result is a continuous function of the inputs.

    Without shrinkage a neuron of one sample has no variance; without damping a constant feature has
    none; float32 has no digits left to divide by a small one.
    """
    bare = family in ("scales", "axes", "no_bias") and dtype == "float64"
    return {
        "shrinkage": draw(st.sampled_from((0.0, 1.0, 8.0, 50.0) if bare else (2.0, 8.0, 50.0))),
        "damping": draw(st.sampled_from((0.0, 0.1, 1.0) if family != "constant" else (0.1, 1.0))),
        "epsilon": draw(st.sampled_from((0.0, 1e-8, 1e-2) if bare else (1e-8, 1e-2))),
    }


@st.composite
def _cases(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, int, int]]) -> Case:
    """A family, a shape, a gate, a dtype and every knob."""
    dtype = draw(st.sampled_from(("float64", "float64", "float32")))
    family = draw(st.sampled_from(GENERAL))
    weighting = draw(st.sampled_from(("gate", "gate_squared", "uniform", "error", "signed")))
    scale = draw(st.sampled_from(("neuron", "layer", "none")[weighting == "signed" :]))
    large = family == "large_mean"  # there the plain gradient cancels, in the framework as well
    knobs = Knobs(
        weighting=weighting,
        scale=scale,
        gradient=draw(st.sampled_from(("preconditioned", "standardized", "plain")[: 3 - large])),
        statistics_rows=draw(st.sampled_from((None, None, 6, 16, 1000))),
        **draw(_continuous(family, dtype)),
    )
    # A dead neuron's weights lie in an exponential tail: float32 has no exponent left for their
    # squares, and where a mean is large z has no digits left for any.
    coarse = dtype == "float32" and family in ("large_mean", "dead", "nearly_dead", "masked")
    gates = ("leaky_relu", "relu") if coarse else sorted(oracle.GATES)
    gate = draw(st.sampled_from((None, *gates)))
    seed, shape = draw(st.integers(0, 10**6)), draw(shapes)
    return cases.make(family, seed=seed, gate=gate, knobs=knobs, dtype=dtype, shape=shape)


def _check(case: Case, implementations: list[Implementation] = QUICK) -> None:
    """Everything against the oracle, and JAX against torch."""
    for implementation in (each for each in implementations if each.supports(case)):
        assert not compare.misses(compare.examine(case, implementation)), implementation.name
    first, second = (each.gradients(case) for each in FUNCTIONS)
    assert not compare.misses(compare.gradients(case, first, second)), "jax and torch"


@settings(derandomize=True, deadline=None, database=None, max_examples=24)
@given(_cases(st.sampled_from(SHAPES)))
def test_random_cases(case: Case) -> None:
    _check(case)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, database=None, max_examples=1000)
@given(_cases(st.sampled_from((*SHAPES, (30, 9, 6), (36, 6, 9), (54, 7, 8), (120, 16, 12)))))
def test_many_random_cases(case: Case) -> None:
    _check(case, IMPLEMENTATIONS)


@pytest.mark.parametrize("family", cases.SHAPES)
def test_extreme_shapes(family: str) -> None:
    """Two rows; one input and one output; more inputs than rows; many rows."""
    for gradient in ("preconditioned", "standardized"):
        _check(cases.make(family, seed=1, gate="silu", knobs=Knobs(gradient=gradient)))


@pytest.mark.parametrize("gate", sorted(oracle.GATES))
def test_gates_far_from_zero(gate: str) -> None:
    """Saturated neurons, and pre-activations beyond every threshold that a library may have.

    All layers of a package have their gates from one function.
    """
    _check(cases.make(seed=3, gate=gate, spread=20.0), FUNCTIONS)
    _check(cases.make("dead", seed=4, gate=gate, spread=10.0), FUNCTIONS)
