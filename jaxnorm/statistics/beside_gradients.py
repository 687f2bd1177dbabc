"""Statistics on their way beside a gradient, in one tree with it."""

from typing import Any

import jax

from jaxnorm.statistics.tracked import Statistics

#: So small that no norm and no clipping of the whole tree sees them, and nothing of them is lost:
#: what is read off statistics is a ratio, and this is a power of two.
SMALL = 2.0**-50


def made_small(tree: Any) -> Any:
    """The tree, with all statistics in it times `SMALL`."""

    def each(node: Any) -> Any:
        return jax.tree.map(lambda value: SMALL * value, node) if _is_statistics(node) else node

    return jax.tree.map(each, tree, is_leaf=_is_statistics)


def asked_for(tree: Any, taken: bool | None) -> Any:
    """The tree, in which a batch leaves statistics that are small.

    Args:
        tree: with the statistics before.
        taken: True: in any case; None: if the schedule says so.
    """

    def each(node: Any) -> Any:
        if not _is_statistics(node):
            return node
        return node.replace(unit=SMALL, interval=1 if taken else node.interval)

    return jax.tree.map(each, tree, is_leaf=_is_statistics)


def as_asked(tree: Any) -> Any:
    """What comes back, in which statistics are nodes like those before."""

    def each(node: Any) -> Any:
        return node.replace(unit=1.0) if _is_statistics(node) else node

    return jax.tree.map(each, tree, is_leaf=_is_statistics)


def _is_statistics(node: Any) -> bool:
    return isinstance(node, Statistics)
