"""Parameters that do not learn (PyTorch's requires_grad; Flax has no such flag on a parameter)."""

import pytest
import torch

from parity_tests.tolerances import GATE, slice_error
from torchnorm import NEURONWISE, PLAIN
from torchnorm.functional import neuronwise_conv2d, neuronwise_linear

LAYERS = {
    "linear": (neuronwise_linear, (12, 5), (7, 5)),
    "conv": (neuronwise_conv2d, (4, 3, 6, 6), (7, 3, 3, 3)),
}


def gradients(layer, learns, rows=None, rule=NEURONWISE):
    """(g_x, g_weight, g_bias) with the named parameters learning."""
    function, x_shape, shape = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(x_shape, generator=generator, dtype=torch.float64) * 3 + 2)[:rows]
    x.requires_grad_()
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight.requires_grad_("weight" in learns)
    bias = torch.randn(7, generator=generator, dtype=torch.float64)
    bias.requires_grad_("bias" in learns)
    z = function(x, weight, bias, gate="gelu", rule=rule)
    z.backward(torch.randn(z.shape, generator=generator, dtype=torch.float64))
    return x.grad, weight.grad, bias.grad


@pytest.mark.parametrize("layer", LAYERS)
def test_frozen_weight_leaves_the_bias_its_plain_gradient(layer):
    g_x, g_weight, g_bias = gradients(layer, {"bias"})
    assert g_weight is None
    whole_x, _, adapted = gradients(layer, {"weight", "bias"})
    assert torch.equal(g_x, whole_x)
    assert slice_error(adapted.numpy(), g_bias.numpy(), axes=()) > 0.01
    *_, plain = gradients(layer, {"bias"}, rule=PLAIN)
    assert slice_error(g_bias.numpy(), plain.numpy(), axes=()) <= GATE["float64"]


@pytest.mark.parametrize("layer", LAYERS)
def test_frozen_bias_counts_as_none(layer):
    _, g_weight, g_bias = gradients(layer, {"weight"})
    assert g_bias is None
    # The gradient of a layer without a bias at the same z: the bias only moves the gate.
    function, x_shape, shape = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64) * 3 + 2
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(7, generator=generator, dtype=torch.float64)
    broadcast = bias.reshape(-1, *[1] * (len(shape) - 2))
    z = function(x, weight, gate=lambda z: torch.nn.functional.gelu(z + broadcast))
    z.backward(torch.randn(z.shape, generator=generator, dtype=torch.float64))
    error = slice_error(g_weight.movedim(0, -1).numpy(), weight.grad.movedim(0, -1).numpy())
    assert error <= GATE["float64"]


@pytest.mark.parametrize("learns", [set(), {"bias"}])
def test_no_statistics_no_need_for_samples(learns):
    g_x, g_weight, g_bias = gradients("linear", learns, rows=1)
    assert g_x.shape == (1, 5)
    assert g_weight is None
    assert (g_bias is None) == (not learns)
