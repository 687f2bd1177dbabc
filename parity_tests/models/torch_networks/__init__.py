"""Networks of other people in PyTorch, and what the gate of each of their layers really sees.

Every model is built from a configuration (nothing is downloaded). What a gate sees is said here by
hand, for each architecture, and taken from the framework's own pass, so it does not depend on what
`torchnorm.convert` found out. One module for each family of networks.
"""

from parity_tests.models.torch_networks import (
    diffusion,
    graphs,
    language,
    medical,
    policies,
    signals,
    tables,
    vision,
)
from parity_tests.models.torch_networks.model import (
    Model,
    Seen,
    given,
    identity,
    itself,
    quick_gelu,
    returned,
    several,
    slope,
)

#: All of them.
MODELS: tuple[Model, ...] = (
    *vision.MODELS,
    *language.MODELS,
    *signals.MODELS,
    *medical.MODELS,
    *diffusion.MODELS,
    *graphs.MODELS,
    *tables.MODELS,
    *policies.MODELS,
)

__all__ = [
    "MODELS",
    "Model",
    "Seen",
    "given",
    "identity",
    "itself",
    "quick_gelu",
    "returned",
    "several",
    "slope",
]
