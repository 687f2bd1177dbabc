"""The modules of an nnx model, by path."""

from typing import Any

from flax import nnx

#: The attribute of what was converted: of a module, where it is in which model; of a layer,
#: whether its gate was found or given by the user.
MARK = "_converted"
FOUND, GIVEN = "found", "given"


def become(module: Any, kind: type) -> None:
    """Change the class and nothing else: nnx would note it down as an attribute."""
    object.__setattr__(module, "__class__", kind)


def modules(model: Any) -> dict[str, tuple[Any, list[str]]]:
    """Path -> (module, other paths of the same object), depth first."""
    found: dict[int, tuple[str, Any, list[str]]] = {}

    def visit(node, path):
        name = "/".join(map(str, path))
        if id(node) in found:
            found[id(node)][2].append(name)
            return
        if isinstance(node, nnx.Module):
            found[id(node)] = (name, node, [])
        for key, child in _children(node):
            visit(child, (*path, key))

    visit(model, ())
    return {name: (node, also) for name, node, also in found.values()}


def _children(node) -> list[tuple[Any, Any]]:
    if isinstance(node, nnx.Variable):
        return []
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    if isinstance(node, nnx.List | nnx.Dict | nnx.Pytree):
        return [(key, child) for key, child in nnx.iter_children(node)]
    return []
