"""Dense layers stand on a path for any linear operation: convolutions go through it as it is."""

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax import lax

import jaxnorm.functional
import jaxnorm.operations
import torchnorm.functional
import torchnorm.operations
from parity_tests import oracle
from parity_tests.tolerances import GATE, slice_error

GEOMETRIES = [
    {},
    {"stride": 2},
    {"groups": 2},
    {"dilation": 2, "pad": ((2, 2), (2, 2))},
    {"pad": ((0, 0), (0, 0)), "groups": 4},
]
KNOBS = [
    oracle.Knobs(),
    oracle.Knobs(scale="layer", gradient="covariant"),
    oracle.Knobs(weighting="uniform"),
    oracle.Knobs(weighting="error", statistics_rows=2),
]


def case(geometry):
    """Images x [N,H,W,C], kernel [h,w,C/groups,O], bias and a cotangent, with large means."""
    rng = np.random.default_rng(0)
    groups = geometry.get("groups", 1)
    x = rng.normal(size=(3, 7, 6, 4)) * [1, 5, 0.2, 1] + [0, 5, 1, -3]
    kernel, bias = rng.normal(size=(3, 3, 4 // groups, 8)), rng.normal(size=8)
    pad, stride = geometry.get("pad", ((1, 1), (1, 1))), geometry.get("stride", 1)
    reach = 2 * geometry.get("dilation", 1)
    size = [(n + sum(p) - reach - 1) // stride + 1 for n, p in zip(x.shape[1:3], pad, strict=True)]
    return x, kernel, bias, rng.normal(size=(3, *size, 8))


def run_jax(arrays, knobs, *, stride=1, pad=((1, 1), (1, 1)), dilation=1, groups=1):
    """(z, g_x, g_kernel, g_bias) through jaxnorm's general path."""

    def apply(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            pad,
            rhs_dilation=(dilation, dilation),
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    padded = any(sum(p) for p in pad)
    operation = jaxnorm.operations.LinearOperation(apply, groups, padded, spatial_axes=2)
    *leaves, g_z = (jnp.asarray(a) for a in arrays)
    rule = jaxnorm.Rule(**asdict(knobs))

    def layer(x, kernel, bias):
        return jaxnorm.functional.linear_operation(
            operation, x, kernel, bias, gate="silu", rule=rule, axis_name=None
        )

    z, pull = jax.vjp(layer, *leaves)
    return [np.asarray(a) for a in (z, *pull(g_z))]


@dataclass(frozen=True)
class Convolution(torchnorm.operations.LinearOperation):
    """A 2-d convolution by the host's own functions."""

    stride: int = 1
    pad: int = 1
    dilation: int = 1

    def apply(self, x, weight, bias):
        """The host's forward pass."""
        return F.conv2d(x, weight, bias, self.stride, self.pad, self.dilation, self.groups)

    def input_grad(self, x, weight, g_z):
        """The host's input gradient."""
        how = (self.stride, self.pad, self.dilation, self.groups)
        return torch.nn.grad.conv2d_input(x.shape, weight, g_z, *how)

    def kernel_grad(self, x, weight, g_z):
        """The host's kernel gradient."""
        shape = (g_z.shape[1], x.shape[1] // self.groups, *weight.shape[2:])
        how = (self.stride, self.pad, self.dilation, self.groups)
        return torch.nn.grad.conv2d_weight(x, shape, g_z, *how)


def run_torch(arrays, knobs, *, stride=1, pad=((1, 1), (1, 1)), dilation=1, groups=1):
    """(z, g_x, g_kernel, g_bias) through torchnorm's general path, in the oracle's layout."""
    x, kernel, bias, g_z = (torch.tensor(a) for a in arrays)
    x, g_z = (a.permute(0, 3, 1, 2) for a in (x, g_z))
    leaves = [a.clone().requires_grad_() for a in (x, kernel.permute(3, 2, 0, 1), bias)]
    width = pad[0][0]
    operation = Convolution(groups, width > 0, 2, stride, width, dilation)
    z = torchnorm.functional.linear_operation(
        operation,
        *leaves,
        gate="silu",
        rule=torchnorm.Rule(**asdict(knobs)),
        process_group=None,
    )
    z.backward(g_z)
    g_x, g_kernel, g_bias = (leaf.grad for leaf in leaves)
    images = [a.detach().permute(0, 2, 3, 1) for a in (z, g_x)]
    return [a.numpy() for a in (*images, g_kernel.permute(2, 3, 1, 0), g_bias)]


@pytest.mark.parametrize("run", [run_jax, run_torch])
@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: f"{knobs.weighting}-{knobs.scale}")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolutions(run, knobs, geometry):
    x, kernel, bias, g_z = case(geometry)
    right = oracle.conv2d(x, kernel, bias, g_z, "silu", knobs, **geometry)
    got = run((x, kernel, bias, g_z), knobs, **geometry)
    expected = (right.z, right.g_x, right.g_kernel, right.g_bias)
    for a, e in zip(got, expected, strict=True):
        # The bias vector is one slice: a sum over all taps, which may cancel for one neuron.
        axes = (-1,) if e.ndim > 1 else ()
        assert slice_error(a, e, axes=axes) <= GATE["float64"]
