"""The gradient in the neurons' coordinates, pulled back or not: no state, this batch only."""

import torch
import torch.distributed as dist

from torchnorm import checks
from torchnorm.coordinates import Moments, pull_back, standardized
from torchnorm.statistics.batch import Batch
from torchnorm.statistics.moments import input_moments
from torchnorm.statistics.weighted_sums import real_mass


def parameter_gradients(batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(g_W, g_b) in the form that `rule.gradient` asks for; g_b is None unless centered."""
    operation, rule = batch.operation, batch.rule
    if batch.process_group is None or dist.get_world_size(batch.process_group) == 1:
        # Of several processes one may well have nothing: the others are not to wait for it.
        samples = batch.samples
        # Of a mask that is traced nothing is known.
        if batch.every.counts is None or not (
            torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        ):
            checks.check_samples(int(samples), batch.centered)
    moments = input_moments(batch)
    if batch.centered:
        g_b = operation.bias_grad(batch.g_z.to(moments.sigma.dtype))
        g_b = operation.per_neuron(g_b, batch.weight)
        g_w = centered_gradient(batch, g_b, moments)
    else:
        g_b, g_w = None, operation.kernel_grad(batch.x, batch.weight, batch.g_z)
    at = moments.coordinates
    g_w = standardized(g_w, at)
    g_w, g_b = (g_w, g_b) if rule.gradient == "standardized" else pull_back(g_w, g_b, at)
    return g_w, None if g_b is None else g_b.reshape(-1)


def centered_gradient(batch: Batch, g_b: torch.Tensor, moments: Moments) -> torch.Tensor:
    """The sum of g_z (x - mean), as a product of x - center, because g_W - mean g_b cancels."""
    operation, x, weight, dtype = batch.operation, batch.x, batch.weight, g_b.dtype
    shifted = (x.to(dtype) - operation.over_samples(moments.center)).to(x.dtype)
    product = operation.kernel_grad(shifted, weight, batch.g_z).to(dtype)
    if not operation.padded:
        return product - moments.offset * g_b
    # Padding is x = 0, not x = center: a tap that sees it has less real mass than the bias.
    real = real_mass(operation, shifted, weight, batch.g_z).to(dtype)
    return product + (moments.mean - moments.offset) * real - moments.mean * g_b
