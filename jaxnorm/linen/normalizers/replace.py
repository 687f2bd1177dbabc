"""Another normalizer in the place of a model's."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from flax import linen as nn


@contextmanager
def replace(
    make: Callable[[Any], nn.Module],
    *,
    of: tuple[type[nn.Module], ...] = (nn.BatchNorm,),
    skip: Sequence[str] = (),
) -> Iterator[list[str]]:
    """Run another normalizer in the place of each of a model's, without a change to its code.

    Inside of the block every call of a module of these classes runs the new one, on the variables
    at the path of the old one: ``scale`` and ``bias`` of one shape are the same, and so are
    running statistics; what the new one does not read stays in the tree as it is. Init inside of
    the block makes what the new one has.

    Forward and backward are those of the new normalizer, so the model computes another function.
    `jaxnorm.linen.neuronwise` inside of the block finds the gates through it: the gate of the layer
    before is what the activation behind the new normalizer sees.

    Args:
        make: makes the new one from the old one, whose fields it may read:
            ``lambda old: nn.GroupNorm(num_groups=8, dtype=old.dtype)``. The new one is called with
            those arguments that it takes; ``use_running_average`` is that of the call or the field.
        of: which classes are replaced.
        skip: paths, or glob patterns of paths, of modules that stay.

    Yields:
        The paths of what was replaced; they are added at the first call of each.

    Raises:
        TypeError: where `make` returns no module, at the call.
        ValueError: at the end of the block, if nothing was replaced.

    Transformations: all; a function that was compiled outside of the block is what it was, so
    call `jax.jit` on a function that enters the block itself.

    Example:
        >>> import flax.linen as nn
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> class Block(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train):
        ...         x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x))
        ...         return nn.relu(x)
        >>> x = jnp.ones((2, 5, 5, 3))
        >>> with jaxnorm.linen.normalizers.replace(lambda old: nn.GroupNorm(num_groups=4)) as paths:
        ...     variables = Block().init(jax.random.key(0), x, train=True)
        >>> paths, sorted(variables)
        (['BatchNorm_0'], ['params'])
    """
    replaced: list[str] = []
    running: list[Any] = []  # the new ones, which may be of these classes too

    def intercept(run: Callable[..., Any], args: tuple, kwargs: dict, call: Any) -> Any:
        old = call.module
        if call.method_name != "__call__" or not isinstance(old, of) or old.scope is None:
            return run(*args, **kwargs)
        if any(old is new for new in running):
            return run(*args, **kwargs)
        path = "/".join(old.path)
        if any(fnmatchcase(path, pattern) for pattern in skip):
            return run(*args, **kwargs)
        new = make(old)
        if not isinstance(new, nn.Module):
            raise TypeError(f"make: got {type(new).__name__}, expected a flax.linen.Module")
        nn.share_scope(old, new)
        if path not in replaced:
            replaced.append(path)
        taken = inspect.signature(type(new).__call__).parameters
        if "use_running_average" in taken and kwargs.get("use_running_average") is None:
            kwargs = {**kwargs, "use_running_average": getattr(old, "use_running_average", None)}
        x, *_ = args
        running.append(new)
        try:
            return new(x, **{name: value for name, value in kwargs.items() if name in taken})
        finally:
            running.remove(new)

    with nn.intercept_methods(intercept):
        yield replaced
    if not replaced:
        wanted = ", ".join(kind.__name__ for kind in of)
        raise ValueError(f"replace: got a model without one, expected modules of {wanted}")
