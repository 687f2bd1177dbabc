"""Every activation of the frameworks, by name and as a callable: its slope is its derivative."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import jaxnorm.activations
from jaxnorm.activations import gate_slope as jax_slope
from parity_tests import oracle
from parity_tests.tolerances import GATE, slice_error
from torchnorm.activations import gate_slope as torch_slope

# Far out, close to every kink, and in between; none on a kink itself.
POINTS = np.array(
    [-80.0, -20.0, -4.1, -3.1, -1.1, -0.6, -0.4, -1e-3, 1e-3, 0.3, 0.6, 1.2, 3.2, 20.0, 90.0]
)

NOT_ELEMENTWISE = {
    "dot_product_attention", "get_scaled_dot_general_config", "glu", "log_softmax", "logmeanexp",
    "logsumexp", "one_hot", "scaled_dot_general", "scaled_matmul", "softmax", "standardize",
}  # fmt: skip
NOT_ACTIVATIONS = {"log1mexp"}

TORCH_MODULES = [
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity",
    "LeakyReLU", "LogSigmoid", "Mish", "ReLU", "ReLU6", "RReLU", "SELU", "Sigmoid", "SiLU",
    "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink",
]  # fmt: skip


def jax_activations() -> list[str]:
    """Every elementwise activation that jax.nn has."""
    names = [
        name for name, value in vars(jax.nn).items() if inspect.isroutine(value) or callable(value)
    ]
    names = [name for name in names if not name.startswith("_")]
    return sorted(set(names) - NOT_ELEMENTWISE - NOT_ACTIVATIONS)


def test_no_activation_of_jax_is_forgotten():
    assert {"relu", "gelu", "squareplus", "sparse_plus"} <= set(jax_activations())
    for name in jax_activations():
        assert jaxnorm.activations.resolve_gate(name) is not None


def test_no_activation_of_torch_is_forgotten():
    from torch.nn.modules import activation

    # Not elementwise, or with a parameter that a name cannot tell: pass those as callables.
    others = {"GLU", "MultiheadAttention", "PReLU", "Softmax", "Softmax2d", "Softmin", "LogSoftmax",
              "Threshold"}  # fmt: skip
    assert set(activation.__all__) - others == set(TORCH_MODULES) - {"Identity"}


@pytest.mark.parametrize("name", jax_activations())
def test_jax_slope_is_the_derivative(name):
    reference = getattr(jax.nn, name)
    expected = np.asarray(jax.jit(jax.vmap(jax.grad(reference)))(POINTS))
    for gate in (name, name.replace("_", "").upper(), reference):
        slope = jax_slope(gate, jnp.asarray(POINTS))
        assert slice_error(np.asarray(slope), expected, axes=()) <= GATE["float64"]


@pytest.mark.parametrize("name", TORCH_MODULES)
def test_torch_slope_is_the_derivative(name):
    reference = getattr(torch.nn, name)().eval()
    z = torch.tensor(POINTS, requires_grad=True)
    reference(z).sum().backward()
    assert z.grad is not None
    for gate in (name, reference):
        slope = torch_slope(gate, z.detach())
        assert slope is not None
        # PyTorch's own hardsigmoid has its 1/6 in single precision.
        accuracy = GATE["float32" if name == "Hardsigmoid" else "float64"]
        assert slice_error(slope.numpy(), z.grad.numpy(), axes=()) <= accuracy


@pytest.mark.parametrize("name", sorted(oracle.GATES))
def test_shared_names_mean_the_same(name):
    ours = np.asarray(jax_slope(name, jnp.asarray(POINTS)), np.float64)
    theirs = torch_slope(name, torch.tensor(POINTS))
    assert theirs is not None
    assert slice_error(ours, theirs.double().numpy(), axes=()) <= GATE["float64"]


@pytest.mark.parametrize("name", sorted(oracle.GATES))
def test_shared_names_mean_the_same_on_every_kink(name):
    # Zero rows with a zero bias lie there: padding, black pictures. The frameworks themselves
    # differ.
    kinks = np.array([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
    expected = oracle.GATES[name][1](kinks)
    ours = np.asarray(jax_slope(name, jnp.asarray(kinks)), np.float64)
    theirs = torch_slope(name, torch.tensor(kinks))
    assert theirs is not None
    for slope in (ours, theirs.double().numpy()):
        assert slice_error(slope, expected, axes=()) <= GATE["float64"]


def test_gelu_is_the_frameworks_default():
    z = jnp.asarray(POINTS)
    same = functools.partial(np.testing.assert_array_equal)
    same(jax_slope("gelu", z), jax_slope("gelu_tanh", z))
    y = torch.tensor(POINTS)
    same(torch_slope("gelu", y), torch_slope("gelu_erf", y))


def test_parameters_go_through_callables():
    leaky = functools.partial(jax.nn.leaky_relu, negative_slope=0.25)
    slope = jax_slope(leaky, jnp.array([-2.0, 3.0]))
    np.testing.assert_array_equal(slope, [0.25, 1.0])
    slope = torch_slope(torch.nn.LeakyReLU(0.25), torch.tensor([-2.0, 3.0]))
    np.testing.assert_array_equal(slope, [0.25, 1.0])
    slope = torch_slope(lambda z: F.threshold(z, 1.0, 0.0), torch.tensor([0.5, 2]))
    np.testing.assert_array_equal(slope, [0.0, 1.0])


def test_unhashable_callables_are_gates():
    @dataclasses.dataclass
    class Scaled:
        factor: float

        def __call__(self, z):
            return self.factor * z

    assert jax_slope(Scaled(3.0), jnp.ones(1)) == 3
    assert torch_slope(Scaled(3.0), torch.ones(1)) == 3


def test_relu_is_kept_as_a_mask():
    assert jax_slope("relu", jnp.array([-1.0, 0.0, 2.0])).dtype == bool
    slope = torch_slope(F.relu, torch.tensor([-1.0, 0.0, 2.0]))
    assert slope is not None
    assert slope.tolist() == [False, False, True]
