"""Meshes: arrays that vary over manual axes (`jax.shard_map`), and Explicit axes."""

from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding


def varying_alike(tree: Any) -> Any:
    """Let all arrays vary over the same manual mesh axes (`jax.shard_map` with check_vma).

    Then each gradient has its array's type, and JAX sums those of replicated arrays over the axes.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(tree)))

    def varying(a):
        missing = tuple(axes - _varying_axes(a))
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(varying, tree)


def _varying_axes(a):
    kind = jax.typeof(a)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return kind.vma  # jax < 0.10


def has_explicit_axes(a: jax.Array) -> bool:
    """Whether a part of it can be an error, as that of a sharded axis on such a mesh."""
    return bool(_sharding(a).mesh.explicit_axes)


def in_auto_axes(f: Any, like: Any, *args: Any) -> Any:
    """f(*args), with the shardings inside of f left to the compiler; f's results are those `like`.

    The statistics add, cut, repeat and reshape along every axis: on a mesh with Explicit axes each
    of that would ask for a sharding.
    """
    meshes = [_sharding(a).mesh for a in jax.tree.leaves(args)]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return f(*args)
    # An array that came from outside of the mesh has an empty mesh of its own.
    types = jax.tree.map(lambda a: NamedSharding(mesh, _sharding(a).spec), like)
    return jax.sharding.auto_axes(f, axes=mesh.explicit_axes, out_sharding=types)(*args)


def _sharding(array):
    return jax.typeof(array).sharding
