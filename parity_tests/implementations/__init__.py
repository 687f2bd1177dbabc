"""One interface over everything that claims to compute the rule.

Only public names of the two packages are used, in the way in which a user would (`in_jax`,
`in_torch`). A framework is imported when its implementations are loaded, so that one can be
examined without the other.
"""

from importlib import import_module

from parity_tests.implementations.base import Gradients, Implementation, Statistics

FRAMEWORKS = ("jax", "torch")


def load(frameworks: tuple[str, ...] = FRAMEWORKS) -> list[Implementation]:
    """One instance of everything the named frameworks offer."""
    modules = [import_module(f"parity_tests.implementations.{name}") for name in frameworks]
    return [kind() for module in modules for kind in module.IMPLEMENTATIONS]


def quick() -> list[Implementation]:
    """All but those that compile everything anew for each case; those have their own tests."""
    return [each for each in load() if each.quick]


__all__ = ["FRAMEWORKS", "Gradients", "Implementation", "Statistics", "load", "quick"]
