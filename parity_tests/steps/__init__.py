"""Several steps of an optimizer: one layer (`layer`), and a small network (`network`)."""

from parity_tests.steps.layer import (
    STEPS,
    Gradient,
    Group,
    error,
    optax_side,
    published,
    several,
    torch_side,
)
from parity_tests.steps.network import (
    Network,
    Trained,
    batches,
    distance,
    in_linen,
    in_plain_torch,
    step_of,
    torch_network,
)

__all__ = [
    "STEPS",
    "Gradient",
    "Group",
    "Network",
    "Trained",
    "batches",
    "distance",
    "error",
    "in_linen",
    "in_plain_torch",
    "optax_side",
    "published",
    "several",
    "step_of",
    "torch_network",
    "torch_side",
]
