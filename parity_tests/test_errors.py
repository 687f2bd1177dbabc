"""Bad input: what was got, what was expected, what to do, in the same words in both packages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxnorm
import torchnorm
from parity_tests.tolerances import GATE, slice_error
from torchnorm.functional import neuronwise_linear

X, KERNEL, BIAS = np.ones((6, 3), "float32"), np.ones((3, 4), "float32"), np.ones(4, "float32")


def run_jax(x=X, kernel=KERNEL, bias=BIAS, gate="relu", **rule):
    """The gradient of the JAX function."""
    rule = rule.pop("rule", None) or jaxnorm.Rule(**rule)
    x, kernel, bias = jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(bias)
    layer = jaxnorm.neuronwise_dense
    return jax.grad(lambda k: layer(x, k, bias, gate=gate, rule=rule).sum().real)(kernel)


def run_torch(x=X, kernel=KERNEL, bias=BIAS, gate="relu", **rule):
    """The gradient of the PyTorch function."""
    rule = rule.pop("rule", None) or torchnorm.Rule(**rule)
    x, weight = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(kernel).T.copy())
    bias = torch.tensor(np.asarray(bias))
    for parameter in (weight, bias):
        if parameter.is_floating_point():
            parameter.requires_grad_()
    z = neuronwise_linear(x, weight, bias, gate=gate, rule=rule)
    z.sum().backward()


BAD = {
    "features": (ValueError, {"x": X[:, :2]}, "got shape (6, 2), expected (..., 3)"),
    "scalar": (ValueError, {"x": X[0, 0]}, "got shape (), expected (..., 3)"),
    "bias": (ValueError, {"bias": BIAS[:2]}, "got shape (2,), expected (4,)"),
    "integers": (TypeError, {"x": X.astype("int32")}, "x: got dtype int32, expected one of"),
    "booleans": (TypeError, {"x": X.astype(bool)}, "x: got dtype bool"),
    "complex": (TypeError, {"x": X.astype("complex64")}, "x: got dtype complex64"),
    "bias dtype": (TypeError, {"bias": BIAS.astype("int32")}, "bias: got dtype int32"),
    "one row": (ValueError, {"x": X[:1]}, "got 1 sample, expected at least 2"),
    "a vector": (ValueError, {"x": X[0]}, "got 1 sample, expected at least 2"),
    "empty": (ValueError, {"x": X[:0]}, "got 0 samples, expected at least 1"),
    "negative": (ValueError, {"damping": -0.1}, "damping: got -0.1, expected a finite number >= 0"),
    "infinite": (ValueError, {"shrinkage": float("inf")}, "shrinkage: got inf, expected a finite"),
    "nan": (ValueError, {"epsilon": float("nan")}, "epsilon: got nan, expected a finite number"),
    "text": (TypeError, {"damping": "0.1"}, "damping: got '0.1', expected a finite number >= 0"),
    "none": (TypeError, {"damping": None}, "damping: got None"),
    "bool": (TypeError, {"epsilon": True}, "epsilon: got True"),
    "set": (TypeError, {"epsilon": {1}}, "epsilon: got {1}, expected a finite number >= 0"),
    "weighting": (
        ValueError,
        {"weighting": "relu"},
        "weighting: got 'relu', expected one of 'gate'",
    ),
    "unhashable": (ValueError, {"scale": ["layer"]}, "scale: got ['layer'], expected one of"),
    "gradient": (
        ValueError,
        {"gradient": "natural"},
        "gradient: got 'natural', expected one of None, 'plain_with_statistics', 'preconditioned'",
    ),
    "signed": (ValueError, {"weighting": "signed"}, "use scale='layer' or scale='none'"),
    "no rows": (ValueError, {"statistics_rows": 0}, "statistics_rows: got 0, expected an int >= 1"),
    "half a row": (
        TypeError,
        {"statistics_rows": 2.5},
        "statistics_rows: got 2.5, expected an int",
    ),
    "float16": (
        ValueError,
        {"statistics_dtype": "float16"},
        "statistics_dtype: got 'float16', expected one of None, 'bfloat16'",
    ),
    "averages in bfloat16": (
        ValueError,
        {"statistics_dtype": "bfloat16", "decay": 0.9},
        "statistics_dtype: got 'bfloat16', expected None where statistics are averages (decay > 0)",
    ),
    "every step's in bfloat16": (
        ValueError,
        {"statistics_dtype": "bfloat16", "statistics_every": 1},
        "or taken in every step (statistics_every=1)",
    ),
    "gate type": (TypeError, {"gate": 3}, "gate: got 3, expected None, the name of an activation"),
    "gate class": (TypeError, {"gate": torch.nn.ReLU}, "expected None, the name of an activation"),
    "rule type": (TypeError, {"rule": "neuron"}, "rule: got 'neuron', expected a Rule"),
}


@pytest.mark.parametrize("name", BAD)
def test_same_error_in_both(name):
    kind, arguments, part = BAD[name]
    texts = []
    for run in (run_jax, run_torch):
        with pytest.raises(kind) as caught:
            run(**arguments)
        texts.append(str(caught.value))
    assert part in texts[0]
    assert texts[0] == texts[1]


def test_good_input_passes_the_same_runs():
    run_jax()
    run_torch()


def test_unknown_gate_lists_the_frameworks_names():
    for run, name in ((run_jax, "sparse_plus"), (run_torch, "tanhshrink")):
        with pytest.raises(
            ValueError, match=r"gate: got 'softmax', expected .* one of celu, elu"
        ) as e:
            run(gate="softmax")
        assert name in str(e.value)


def test_gates_must_keep_the_shape():
    texts = []
    for run, gate in ((run_jax, jnp.sum), (run_torch, torch.sum)):
        with pytest.raises(ValueError, match="expected an elementwise one") as caught:
            run(gate=gate)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_matrices():
    with pytest.raises(ValueError, match=r"kernel: got shape \(3,\), expected two axes \[I, O\]"):
        jaxnorm.neuronwise_dense(X, KERNEL[:, 0], gate=None)
    with pytest.raises(ValueError, match=r"weight: got shape \(3,\), expected two axes \[O, I\]"):
        neuronwise_linear(torch.tensor(X), torch.tensor(KERNEL[:, 0]), gate=None)


def test_knobs_that_are_arrays_are_0d():
    for rule, array in ((jaxnorm.Rule, jnp.ones), (torchnorm.Rule, torch.ones)):
        assert rule(damping=array(())).damping == 1
        with pytest.raises(TypeError, match="damping: got"):
            rule(damping=array(4))
    for negative in (np.float32(-1), np.array(-1.0), jnp.array(-1.0)):
        with pytest.raises(ValueError, match="expected a finite number >= 0"):
            jaxnorm.Rule(damping=negative)


def test_other_things_than_tensors():
    with pytest.raises(TypeError, match=r"x: got ndarray, expected a torch\.Tensor"):
        neuronwise_linear(X, torch.tensor(KERNEL.T), gate=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x: got shape \(\), expected"):
        jaxnorm.linen.Dense(4, gate=None).init(jax.random.key(0), X[0, 0])
    with pytest.raises(ValueError, match=r"x: got shape \(6, 2\), expected \(\.\.\., 3\)"):
        jaxnorm.nnx.Linear(3, 4, gate=None, rngs=nnx.Rngs(0))(X[:, :2])


def test_gate_has_no_default():
    for make in (
        lambda: jaxnorm.linen.Dense(4),
        lambda: jaxnorm.neuronwise_dense(X, KERNEL),
        lambda: torchnorm.Linear(3, 4),
        lambda: neuronwise_linear(torch.tensor(X), torch.tensor(KERNEL.T)),
    ):
        with pytest.raises(TypeError, match="gate"):
            make()


@pytest.mark.parametrize("rows", [X[:1], X[0], X[:0]], ids=["one row", "a vector", "empty"])
def test_too_few_rows_are_no_error_before_the_gradient(rows):
    form = {"gradient": "preconditioned"}
    layer = jaxnorm.linen.Dense(4, gate="relu", rule=jaxnorm.Rule(**form))
    assert layer.init_with_output(jax.random.key(0), rows)[0].shape == (*rows.shape[:-1], 4)
    module = torchnorm.Linear(3, 4, gate="relu", rule=torchnorm.Rule(**form))
    assert module(torch.tensor(rows)).shape == (*rows.shape[:-1], 4)
    weight = torch.tensor(KERNEL.T.copy())
    neuronwise_linear(torch.tensor(rows, requires_grad=True), weight, gate=None).sum().backward()


def test_one_row_without_a_bias_learns():
    # Nothing is subtracted there, so one row is as good as many.
    gradient = jax.grad(
        lambda k: jaxnorm.neuronwise_dense(jnp.asarray(X[:1]), k, gate="relu").sum()
    )(jnp.asarray(KERNEL))
    weight = torch.tensor(KERNEL.T.copy(), requires_grad=True)
    neuronwise_linear(torch.tensor(X[:1]), weight, gate="relu").sum().backward()
    assert weight.grad is not None
    assert np.all(np.asarray(gradient) > 0)
    assert slice_error(gradient.T, weight.grad) <= GATE["float32"]


def test_moments_check_their_arguments():
    s = np.ones((6, 4), "float32")
    bad = {
        "samples": (X, s[:5], "sample_weight: got shape (5, 4), expected (6,) followed by"),
        "axes": (X, s[0], "sample_weight: got shape (4,), expected (6,) followed by"),
        "one row": (X[:1], s[:1], "got 1 sample, expected at least 2"),
    }
    for x, weight, part in bad.values():
        texts = []
        for moments, array in (
            (jaxnorm.neuron_moments, jnp.asarray),
            (torchnorm.neuron_moments, torch.tensor),
        ):
            with pytest.raises(ValueError, match="got") as caught:
                moments(array(x), array(weight))
            texts.append(str(caught.value))
        assert part in texts[0]
        assert texts[0] == texts[1]
