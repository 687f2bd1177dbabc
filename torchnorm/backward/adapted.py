"""The gradient in the standardized coordinates, and pulled back out of them."""

import torch
import torch.distributed as dist

from torchnorm import checks
from torchnorm.coordinates import pull_back, standardized
from torchnorm.statistics.moments import centered_gradient, input_moments
from torchnorm.statistics.step_scale import divisor


def parameter_gradients(operation, x, weight, g_z, slope, rule, knobs, *, centered, process_group):
    """(g_W, g_b) in the form that `rule.gradient` asks for; g_b is None unless centered."""
    rows = operation.first_rows(g_z, rule.statistics_rows)
    if process_group is None or dist.get_world_size(process_group) == 1:
        # Of several processes one may well have nothing: the others are not to wait for it.
        checks.check_samples(operation.samples(rows), centered)
    moments = input_moments(
        operation,
        x,
        weight,
        slope,
        rows,
        rule,
        knobs,
        centered=centered,
        process_group=process_group,
    )
    if centered:
        g_b = operation.bias_grad(g_z.to(moments.sigma.dtype))
        g_w = centered_gradient(operation, x, weight, g_z, g_b, moments)
    else:
        g_b, g_w = None, operation.kernel_grad(x, weight, g_z)
    g_w = standardized(g_w, moments)
    g_w, g_b = (g_w, g_b) if rule.gradient == "standardized" else pull_back(g_w, g_b, moments)
    if rule.step_scale != "none":
        by = _divisor(operation, x, weight, rows, rule, knobs, process_group)
        g_w, g_b = g_w / by, None if g_b is None else g_b / by
    return g_w, g_b


def _divisor(operation, x, weight, rows, rule, knobs, process_group):
    """`step_scale.divisor` on the rows that the statistics use; its root for half of the way."""

    def total(values):
        if process_group is not None:
            values = values.clone()
            dist.all_reduce(values, group=process_group)
        return values

    x = operation.first_rows(x, rule.statistics_rows)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    _, damping, epsilon = knobs
    by = divisor(rule.step_scale, operation, x, weight, rows, damping, epsilon, total)
    return by.sqrt() if rule.gradient == "standardized" else by
