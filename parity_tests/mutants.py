"""Planted bugs: the proof that the matrix can fail.

Each is one substitution in one file of one package, whose old text must occur there exactly once.
The packages are twins, so a bug is planted in both, in the dialect of each.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A bug: its name, its file, and for each package the old text and the new."""

    name: str
    file: str
    jax: tuple[str, str]
    torch: tuple[str, str]


def _same(name: str, file: str, old: str, new: str) -> Mutant:
    """A bug that reads the same in both packages."""
    return Mutant(name, file, (old, new), (old, new))


MUTANTS = (
    # Variance, damping, epsilon.
    Mutant(
        "epsilon outside the root",
        "statistics.py",
        ("jnp.sqrt(square))", "jnp.sqrt(square - epsilon) + epsilon)"),
        ("square.sqrt())", "(square - epsilon).sqrt() + epsilon)"),
    ),
    Mutant(
        "damping by the mean over neurons",
        "statistics.py",
        ("axes = tuple(range(variance.ndim - 1))", "axes = (variance.ndim - 1,)"),
        ("axes = tuple(range(1, variance.ndim))", "axes = (0,)"),
    ),
    Mutant(
        "damping by the maximum",
        "statistics.py",
        ("damping * jnp.mean(variance", "damping * jnp.max(variance"),
        ("damping * variance.mean(", "damping * variance.amax("),
    ),
    Mutant(
        "unbiased variance",
        "statistics.py",
        ("jnp.maximum(variance / count, 0)", "jnp.maximum(variance / (count - 1), 0)"),
        ("torch.clamp_min(variance / count, 0)", "torch.clamp_min(variance / (count - 1), 0)"),
    ),
    Mutant(
        "E[x^2] - E[x]^2 without a shift",
        "statistics.py",
        ("channel_shift = total(operation", "channel_shift = 0 * total(operation"),
        ("channel_shift = channel_sum", "channel_shift = 0 * channel_sum"),
    ),
    Mutant(
        "statistics in float32",
        "statistics.py",
        (
            "dtype = jnp.promote_types(x.dtype, jnp.float32)\n    outputs",
            "dtype = jnp.float32\n    outputs",
        ),
        (
            "dtype = torch.promote_types(x.dtype, torch.float32)\n    outputs",
            "dtype = torch.float32\n    outputs",
        ),
    ),
    _same(
        "variance about another mean",
        "statistics.py",
        "rest * variance - step * step",
        "rest * variance",
    ),
    # Mean and shrinkage.
    _same(
        "shrinkage missing",
        "statistics.py",
        "neuron.mass**2 + shrinkage * neuron.square",
        "neuron.mass**2",
    ),
    _same(
        "number of samples by mass alone",
        "statistics.py",
        "neuron.mass**2 + shrinkage * neuron.square",
        "neuron.mass**2 + shrinkage * neuron.mass",
    ),
    _same(
        "neuron's own mean forgotten",
        "statistics.py",
        "return layer_offset + step, variance",
        "return layer_offset, variance",
    ),
    Mutant(
        "statistics of transposed features",
        "statistics.py",
        ("operation.kernel_grad(x, kernel, s)", "operation.kernel_grad(x, kernel, s)[::-1]"),
        ("operation.kernel_grad(x, weight, s)", "operation.kernel_grad(x, weight, s).flip(1)"),
    ),
    Mutant(
        "centred without a bias",
        "statistics.py",
        (
            "channel_shift = jnp.zeros(",
            "x = x - jnp.mean(x, 0, keepdims=True)\n        channel_shift = jnp.zeros(",
        ),
        (
            "channel_shift = x.new_zeros(",
            "x = x - x.mean(0)\n        channel_shift = x.new_zeros(",
        ),
    ),
    _same(
        "scale 'layer' is 'neuron'",
        "statistics.py",
        'own_scale = rule.scale != "none", rule.scale == "neuron"',
        'own_scale = rule.scale != "none", rule.scale != "none"',
    ),
    _same(
        "scale 'none' is 'layer'",
        "statistics.py",
        'own_scale = rule.scale != "none", rule',
        "own_scale = True, rule",
    ),
    # Which samples count.
    Mutant(
        "the wrong side of the ReLU",
        "gates.py",
        ("jax.nn.relu: lambda z: z > 0", "jax.nn.relu: lambda z: z < 0"),
        ("F.relu: lambda z: z > 0", "F.relu: lambda z: z < 0"),
    ),
    Mutant(
        "|phi'| without the bars",
        "weighting.py",
        ("return jnp.abs(base) if", "return base if"),
        ("return base.abs() if", "return base if"),
    ),
    _same(
        "gate_squared is gate",
        "weighting.py",
        'weighting == "gate" else',
        'weighting != "error" else',
    ),
    _same(
        "error weight not squared",
        "weighting.py",
        'weighting == "gate" else',
        'weighting != "gate_squared" else',
    ),
    _same("rows ignored", "operations.py", "if rows is None or", "if True or"),
    # Gradients.
    Mutant(
        "difference of two large numbers",
        "statistics.py",
        (
            "product = operation.kernel_grad(shifted, kernel, g_z).astype(dtype)",
            "product = operation.kernel_grad(x, kernel, g_z).astype(dtype)"
            " - (moments.mean - moments.offset) * g_b[None]",
        ),
        (
            "product = operation.kernel_grad(shifted, weight, g_z).to(dtype)",
            "product = operation.kernel_grad(x, weight, g_z).to(dtype)"
            " - (moments.mean - moments.offset) * g_b[:, None]",
        ),
    ),
    _same(
        "covariant not divided",
        "coordinates.py",
        "return centred_gradient / moments.sigma",
        "return centred_gradient",
    ),
    Mutant(
        "sigma in place of its square",
        "coordinates.py",
        ("kernel_step = step / moments.sigma", "kernel_step = step"),
        ("weight_step = step / moments.sigma", "weight_step = step"),
    ),
    Mutant(
        "bias correction dropped",
        "coordinates.py",
        ("bias_step - jnp.sum(moved, ", "bias_step - 0 * jnp.sum(moved, "),
        ("bias_step - moved", "bias_step - 0 * moved"),
    ),
    Mutant(
        "bias corrected by the old kernel gradient",
        "coordinates.py",
        ("moments.mean * kernel_step)", "moments.mean * step)"),
        ("moments.mean * weight_step)", "moments.mean * step)"),
    ),
    Mutant(
        "input gradient adapted",
        "custom_gradient.py",
        ("return g_x, ", "return g_x - jnp.mean(g_x, axis=0, keepdims=True), "),
        ("input_grad(x, weight, g_z)", "input_grad(x, weight, g_z - g_z.mean(0))"),
    ),
    _same(
        "covariant is preconditioned",
        "custom_gradient.py",
        'if rule.gradient == "covariant" else',
        "if False else",
    ),
)
