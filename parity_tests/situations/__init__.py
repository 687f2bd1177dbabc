"""Random situations: a small network, what is wrapped around it, its data; against NumPy.

`python -m parity_tests.situations`. A `Case` is the settings, `draw` makes it from a number,
`reference` says what is right, `in_jax` and `in_torch` run it as a user would, `compare` compares.
"""

from parity_tests.situations.case import Block, Case, Frozen, Network, Structure, Wrapping
from parity_tests.situations.compare import check

__all__ = ["Block", "Case", "Frozen", "Network", "Structure", "Wrapping", "check"]
