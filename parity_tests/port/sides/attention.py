"""`jax.nn.dot_product_attention` in float64.

It takes its softmax in float32 whatever it is given, and nnx's attention calls it. For the time of
a comparison in float64 it is replaced by the same formula in the dtype of the queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

#: What JAX gives a hidden logit.
_HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)


@contextmanager
def exact_attention() -> Iterator[list[str]]:
    """Replace the function; the list gets a note if it was called."""
    original, notes = jax.nn.dot_product_attention, []

    def dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        bias: Any = None,
        mask: Any = None,
        *,
        scale: Any = None,
        is_causal: bool = False,
        **options: Any,
    ) -> Any:
        more = {name for name, option in options.items() if option not in (None, False)}
        if query.dtype != jnp.float64 or more - {"implementation"}:
            return original(
                query, key, value, bias, mask, scale=scale, is_causal=is_causal, **options
            )
        if not notes:
            notes.append(
                "jax.nn.dot_product_attention takes its softmax in float32; here it was computed "
                "in float64"
            )
        return _attention(query, key, value, bias, mask, scale, is_causal)

    jax.nn.dot_product_attention = dot_product_attention
    try:
        yield notes
    finally:
        jax.nn.dot_product_attention = original


def _attention(
    query: Any, key: Any, value: Any, bias: Any, mask: Any, scale: Any, causal: bool
) -> Any:
    """[(B,) T, N, H] with keys and values of [(B,) S, K, H], K a divisor of N."""
    groups = query.shape[-2] // key.shape[-2]
    key, value = jnp.repeat(key, groups, -2), jnp.repeat(value, groups, -2)
    logits = jnp.einsum("...tnh,...snh->...nts", query, key)
    logits *= query.shape[-1] ** -0.5 if scale is None else scale
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask, logits, _HIDDEN)
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, _HIDDEN)
    return jnp.einsum("...nts,...snh->...tnh", jax.nn.softmax(logits), value)
