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


def _is_statistics(node: Any) -> bool:
    return isinstance(node, Statistics)
