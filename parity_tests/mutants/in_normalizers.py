"""Bugs in the normalizers of the forward pass, which are rows of the matrix too."""

from __future__ import annotations

from parity_tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        "the epsilon of Batch Renormalization in the root",
        "normalizers/batch_renorm.py",
        ("_root(var) + epsilon", "_root(var + epsilon)"),
        ("_root(var) + eps", "_root(var + eps)"),
        "BatchRenorm",
    ),
    Mutant(
        "a running average with the other momentum",
        "normalizers/channels.py",
        (
            "momentum * computed(old) + (1 - momentum) * new.reshape",
            "(1 - momentum) * computed(old) + momentum * new.reshape",
        ),
        (
            "(1 - momentum) * computed(old) + momentum * new.reshape",
            "momentum * computed(old) + (1 - momentum) * new.reshape",
        ),
        "StochasticNorm",
    ),
    Mutant(
        "Online Normalization without the control of the mean",
        "normalizers/online_norm.py",
        ("y) / root - rate * gradient.reshape(shape)", "y) / root"),
        ("g_x = g_x - rate * gradient.reshape(root.shape)", "g_x = g_x * 1"),
        "OnlineNorm",
    ),
)
