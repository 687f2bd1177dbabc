"""Bugs in the size of a step: in what sigma is relative to, and where."""

from __future__ import annotations

from parity_tests.mutants.mutant import Mutant, same

_MOMENTS, _TRACKED = "statistics/moments.py", "statistics/tracked.py"

MUTANTS = (
    Mutant(
        "one root mean square for all neurons",
        _MOMENTS,
        ("axes = tuple(range(sigma.ndim - 1))", "axes = tuple(range(sigma.ndim))"),
        ("axes = tuple(range(1, added.ndim))", "axes = tuple(range(added.ndim))"),
    ),
    Mutant(
        "the root mean square of constants, too",
        _MOMENTS,
        ("count = jnp.sum(counts,", "count = jnp.sum(jnp.ones_like(counts),"),
        ("variance.sign().sum(", "torch.ones_like(variance).sum("),
        "constant",
    ),
    Mutant(
        "the mean of sigma for its root mean square",
        _MOMENTS,
        (
            "root = jnp.sqrt(total / jnp.maximum(count, 1))",
            "total = jnp.sum(jnp.where(counts, sigma, 0), axis=axes, keepdims=True)\n"
            "    root = total / jnp.maximum(count, 1)",
        ),
        (
            "root = (total / count.clamp_min(1)).sqrt()",
            "total = ((variance + added).sqrt() * variance.sign()).sum(axes, keepdim=True)\n"
            "    root = total / count.clamp_min(1)",
        ),
    ),
    Mutant(
        "the root mean square before the damping",
        _MOMENTS,
        (
            "sigma = sigma / size_of(sigma, counts, 1)",
            "bare, _ = damped_sigma(variance, 0, 0)\n"
            "            sigma = sigma / size_of(bare, counts, 1)",
        ),
        ("size_of(variance, added, 1)", "size_of(variance, 0 * added, 1)"),
    ),
    same("stateless: sigma is absolute", _MOMENTS, 'if rule.step_size == "plain":', "if False:"),
    Mutant(
        "stateless: the root mean square taken twice",
        _MOMENTS,
        ("counts, 1)", "counts, 2)"),
        ("added, 1)", "added, 2)"),
    ),
    same(
        "stateless: step_size does not matter",
        _MOMENTS,
        'if rule.step_size == "plain":',
        "if True:",
        "every knob, step size",
    ),
    Mutant(
        "recorded: sigma is absolute",
        _TRACKED,
        ("divisor = size_of(root, counts, statistics.relative)", "pass"),
        ("size_of(variance, added, statistics.relative)", "torch.ones_like(added)"),
    ),
    Mutant(
        "recorded: the root mean square taken twice",
        _TRACKED,
        ("counts, statistics.relative)", "counts, 2 * statistics.relative)"),
        ("added, statistics.relative)", "added, 2 * statistics.relative)"),
    ),
    Mutant(
        "recorded: step_size does not matter",
        _TRACKED,
        ("counts, statistics.relative)", "counts, 1)"),
        ("added, statistics.relative)", "added, 1)"),
        "every knob, step size",
    ),
    Mutant(
        "the bias has the size of the kernel's step",
        "coordinates.py",
        (
            "return kernel_step, bias_step - _over_inputs(moved)",
            "return kernel_step, bias_step / jnp.mean(1 / at.scale) - _over_inputs(moved)",
        ),
        (
            "return weight_step, bias_step - _mean_response(weight_step, at)",
            "return weight_step, bias_step * at.scale.mean() - _mean_response(weight_step, at)",
        ),
    ),
    Mutant(
        "the knobs of two calls are added up",
        _TRACKED,
        ("jnp.where(places == 0, factor, calls)", "jnp.where(places == 0, factor, 1)"),
        ("self.scalars[first:last] / calls", "self.scalars[first:last]"),
        situations=("dense", "shared"),
    ),
)
