"""Bugs that only steps show, in some situation."""

from __future__ import annotations

from parity_tests.mutants.mutant import Mutant, same

MUTANTS = (
    Mutant(
        "a first batch is summed about 0",
        "statistics/center.py",
        ("return jnp.where(far, mean, 0), far.astype(mean.dtype)", "return 0 * mean, 0 * mean"),
        ("return torch.where(far, mean, before), far.to(mean.dtype)", "return 0 * mean, 0 * mean"),
        situations=("dense", "large mean", "float32", "momentum"),
    ),
    Mutant(
        "constants among the sums",
        "statistics/tracked.py",
        ("one = jnp.where(batch.samples > 0, marks[0, 0], 0)", "one = jnp.ones(())"),
        None,
        situations=("vmap",),
    ),
    Mutant(
        "a mean of parts has the samples of one",
        "statistics/parts.py",
        ("return jnp.min(jnp.where(parts > 0, parts, jnp.inf))", "return jnp.ones(())"),
        None,
        situations=("dense", "average", "normalizer"),
    ),
    Mutant(
        "frozen entries have a gradient",
        "coordinates.py",
        (
            "standardized(centered, at._replace(varies=at.varies & (g_w != 0)))",
            "standardized(centered, at)",
        ),
        ("return list(map(zero_unless, flags, centered))", "return list(centered)"),
        situations=("dense", "frozen entries", "shared"),
    ),
    Mutant(
        "a frozen bias makes up for the mean",
        "optim/in_neuron_coordinates.py",
        ("None else gradient.bias == 0", "None else gradient.bias != gradient.bias"),
        ("_moves(flat) & stands", "_moves(flat) & (stands != stands)"),
        torch_file="optim/layer_coordinates.py",
        situations=("dense", "frozen biases"),
    ),
    Mutant(
        "decay through the mean",
        "optim/in_neuron_coordinates.py",
        ('if does.params == "other":', 'if does.params != "unused":'),
        ('if kinds <= {"none", "decoupled"}:', "share = 0\n    if False:"),
        torch_file="optim/decay.py",
        situations=("dense", "weight decay", "adamw", "groups"),
    ),
    Mutant(
        "what does not vary has a gradient",
        "statistics/moments.py",
        ("variance <= lost + number.tiny", "variance < -1"),
        ("zero_unless(variance - lost, variance, above=number.tiny)", "variance + lost"),
        situations=("dense", "constant", "adam", "float32"),
    ),
    same(
        "a single sample is its own mean",
        "statistics/merging.py",
        "~alone & ",
        "",
        situations=("dense", "single row"),
    ),
)
