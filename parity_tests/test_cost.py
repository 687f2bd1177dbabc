"""The cost in products, read off the compiled program: at most two more kernel gradients."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxnorm import BNP, PLAIN, Rule, neuronwise_dense

N, I, O = 64, 96, 128  # noqa: E741
FULL = 2 * N * I * O

#: Full-size products of a whole step (forward, input gradient, kernel gradient: 3) by rule.
PRODUCTS = [
    (PLAIN, 3),
    (BNP, 3),
    (Rule(scale="none"), 4),
    (Rule(scale="layer"), 4),
    (Rule(), 5),
    (Rule(weighting="error"), 5),
]


def compiled(rule):
    """The optimised program of one step."""

    def loss(kernel, bias, x):
        return jnp.sum(jax.nn.relu(neuronwise_dense(x, kernel, bias, gate="relu", rule=rule)) ** 2)

    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((I, O), (O,), (N, I))]
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()


def products(text):
    """How many dots of the program work on the layer's full size."""
    sizes = {(N, O), (I, O), (N, I)}
    found = re.findall(r"= f\d+\[(\d+),(\d+)\]\S* (?:dot|custom-call)\(", text)
    return sum((int(a), int(b)) in sizes or (int(b), int(a)) in sizes for a, b in found)


@pytest.mark.parametrize(("rule", "expected"), PRODUCTS, ids=str)
def test_products_of_a_step(rule, expected):
    assert products(compiled(rule).as_text()) == expected


def test_rows_thin_the_statistics():
    flops = {
        rows: compiled(Rule(statistics_rows=rows)).cost_analysis()["flops"] for rows in (16, None)
    }
    saved = flops[None] - flops[16]
    assert saved > 0.7 * 2 * FULL  # three quarters of the two products, less what is elementwise
