"""The gradient in the standardized coordinates, and pulled back out of them."""

import torch
import torch.distributed as dist

from torchnorm import checks
from torchnorm.coordinates import pull_back, standardized
from torchnorm.statistics.batch import Batch
from torchnorm.statistics.moments import Moments, input_moments
from torchnorm.statistics.step_scale import divisor
from torchnorm.statistics.weighted_sums import real_mass


def adapted_gradients(batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(g_W, g_b) in the form that `rule.gradient` asks for; g_b is None unless centered."""
    if batch.process_group is None or dist.get_world_size(batch.process_group) == 1:
        # Of several processes one may well have nothing: the others are not to wait for it.
        checks.check_samples(batch.samples, batch.centered)
    operation, g_z = batch.operation, batch.g_z
    moments = input_moments(batch)
    if batch.centered:
        g_b = operation.bias_grad(g_z.to(moments.sigma.dtype))
        g_w = centered_gradient(batch, g_b, moments)
    else:
        g_b, g_w = None, operation.kernel_grad(batch.x, batch.weight, g_z)
    g_w = standardized(g_w, moments)
    standard = batch.rule.gradient == "standardized"
    g_w, g_b = (g_w, g_b) if standard else pull_back(g_w, g_b, moments)
    if batch.rule.step_scale != "none":
        by = divisor(batch).sqrt() if standard else divisor(batch)  # the root: half of the way
        g_w, g_b = g_w / by, None if g_b is None else g_b / by
    return g_w, g_b


def centered_gradient(batch: Batch, g_b: torch.Tensor, moments: Moments) -> torch.Tensor:
    """The sum of g_z (x - mean), as a product of x - c, because g_W - mean g_b cancels."""
    operation, x, weight, g_z = batch.operation, batch.x, batch.weight, batch.g_z
    dtype = g_b.dtype
    shifted = (x.to(dtype) - operation.over_samples(moments.shift)).to(x.dtype)
    product = operation.kernel_grad(shifted, weight, g_z).to(dtype)
    g_b = operation.per_neuron(g_b, weight)
    if not operation.padded:
        return product - moments.offset * g_b
    # Padding is x = 0, not x = c: a tap that sees it has less real mass than the bias.
    real = real_mass(operation, shifted, weight, g_z).to(dtype)
    return product + (moments.mean - moments.offset) * real - moments.mean * g_b
