"""Which samples count: the mask of a batch whose padding is to stay out of the statistics."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxnorm import checks


class _Current(NamedTuple):
    mask: Any
    traced: bool


_current: ContextVar[_Current | None] = ContextVar("neuron_mask", default=None)
#: Inside of a program JAX keeps what it has traced under another mask apart.
_program = jax.make_user_context(0)
_programs = itertools.count(1)


@contextlib.contextmanager
def neuron_mask(mask: Any) -> Iterator[None]:
    """Inside, the layers' statistics leave out the samples that the mask does not count.

    Padding that the loss does not count has no part in the gradient, but it would have one in the
    input moments of every neuron. With a mask they are those of the batch without these rows,
    counts of samples included. Forward pass and default gradients stay what they are.

    Each layer takes of the mask what it has of its axes: a layer whose samples are [batch, time]
    uses a mask [batch, time] as it is, one whose samples are the two as one axis uses it so too; of
    axes that the layer does not have, or has at another length (a pooled output, an image behind a
    stride), the largest weight counts, so that an example counts if any of it does. A layer without
    the first axis of the mask is an error.

    Args:
        mask: booleans, or weights >= 0: one of 2 counts as if the sample were there twice (so their
            unit matters, as the number of samples does). The first axes are those of the model's
            batch. None: all samples count.

    Raises:
        TypeError: for a mask that is not real.
        ValueError: in a layer whose samples have not the mask's first axis; and where the mask
            would become a constant of a compiled function.

    Transformations: jit, grad, vmap (map the mask with the batch), remat, shard_map (shard it
    alike). Enter it in the function that is compiled, which takes the mask as an argument. Under a
    `scan` over time a layer sees single steps, and uses what the mask says of the whole example.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> model = nn.Sequential([jaxnorm.linen.Dense(4, gate="relu"), nn.relu, nn.Dense(1)])
        >>> tokens, lengths = jnp.ones((2, 5, 3)), jnp.array([5, 2])
        >>> mask = jnp.arange(5)[None] < lengths[:, None]
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> stats = jaxnorm.linen.init_statistics(model, variables, tokens)
        >>> def loss(stats):
        ...     with jaxnorm.neuron_mask(mask):
        ...         z = model.apply({**variables, "neuron_stats": stats}, tokens)
        ...     return jnp.sum(z[..., 0] * mask)
        >>> float(jax.grad(loss)(stats)["layers_0"]["statistics"].samples)
        7.0
    """
    if mask is not None:
        mask = jnp.asarray(mask)
        checks.check_neuron_mask(mask.dtype.name, real=_is_real(mask))
    traced = _is_tracing()
    before = _current.set(_Current(mask, traced))
    try:
        with _program(next(_programs)) if traced else contextlib.nullcontext():
            yield
    finally:
        _current.reset(before)


def current_mask() -> Any:
    """The mask in effect, or None."""
    current = _current.get()
    if current is None or current.mask is None:
        return None
    if not current.traced and _is_tracing():
        raise ValueError(
            "neuron_mask: got a mask from outside of the function that JAX traces, which would "
            "keep it for all later calls, expected one from inside; hand the mask to the function "
            "as an argument and enter jaxnorm.neuron_mask there"
        )
    return current.mask


def _is_tracing() -> bool:
    """Whether JAX is writing down a program (jit, scan, remat), and so keeps what is a constant."""
    return isinstance(lax.add(np.int32(0), np.int32(0)), Tracer)


def _is_real(mask: jax.Array) -> bool:
    return mask.dtype == bool or any(
        jnp.issubdtype(mask.dtype, kind) for kind in (jnp.integer, jnp.floating)
    )


def fitted(mask: Any, samples: tuple[int, ...], dtype: Any) -> jax.Array:
    """How often each of the samples counts, with their axes."""
    mask = jnp.asarray(mask)
    checks.check_neuron_mask(mask.dtype.name, real=_is_real(mask))
    given = mask.shape
    if samples and given and given[0] != samples[0]:
        for joined in range(2, len(given) + 1):
            if math.prod(given[:joined]) == samples[0]:
                mask = mask.reshape(samples[0], *given[joined:])
                break
    shared = 0
    for a, b in zip(mask.shape, samples, strict=False):
        if a != b:
            break
        shared += 1
    checks.check_fits(given, samples, fits=shared > 0 or not given)
    mask = jnp.max(mask, axis=tuple(range(shared, mask.ndim)), initial=0)
    mask = mask.astype(dtype).reshape(*mask.shape, *[1] * (len(samples) - shared))
    return jnp.broadcast_to(mask, samples)
