"""The exact Gauss-Newton block of every neuron of a dense layer, and how well conditioned it is."""

import jax
import jax.numpy as jnp


def neuron_blocks(
    x: jax.Array,
    weight: jax.Array,
    mean: jax.Array | None = None,
    sigma: jax.Array | None = None,
) -> jax.Array:
    """Each neuron's block of the Gauss-Newton matrix, bias and weights, in any coordinates.

        G_o = sum_n weight[n, o] u u^T / N,   u = (1, (x_n - mean_o) / sigma_o)

    With ``weight = phi'(z)^2 h``, h the curvature of the loss at the output of the activation, it
    is the diagonal block of the Gauss-Newton matrix of a neuron whose h does not mix samples; with
    ``weight = phi'(z)^2``, what of it is the layer's own.

    Args:
        x: inputs [N, I].
        weight: nonnegative, [N, O].
        mean: of the coordinates, [I, O] or what broadcasts to it, such as of `neuron_moments`.
            None: 0, the plain coordinates.
        sigma: of the coordinates, as `mean`. None: 1.

    Returns:
        [O, I + 1, I + 1], symmetric and positive semidefinite; the bias comes first.

    Raises:
        ValueError: for shapes that do not fit.

    Transformations: all.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.analysis import condition_numbers, neuron_blocks
        >>> x, weight = jnp.array([[9.0], [11.0]]), jnp.ones((2, 1))
        >>> plain = condition_numbers(neuron_blocks(x, weight))
        >>> ours = condition_numbers(neuron_blocks(x, weight, mean=10.0))
        >>> bool(plain[0] > 9000), ours
        (True, Array([1.], dtype=float32))
    """
    if x.ndim != 2 or weight.ndim != 2 or len(x) != len(weight):
        raise ValueError(
            f"weight: got shape {weight.shape}, expected [N, O] for x of shape [N, I], got "
            f"{x.shape}"
        )
    outputs = weight.shape[1]
    moved = jnp.broadcast_to(x[:, :, None], (*x.shape, outputs))
    if mean is not None:
        moved = moved - jnp.broadcast_to(jnp.asarray(mean), moved.shape[1:])[None]
    if sigma is not None:
        moved = moved / jnp.broadcast_to(jnp.asarray(sigma), moved.shape[1:])[None]
    ones = jnp.ones_like(moved[:, :1])
    u = jnp.concatenate([ones, moved], axis=1)
    return jnp.einsum("nio,njo,no->oij", u, u, weight) / len(x)


def condition_numbers(blocks: jax.Array) -> jax.Array:
    """Largest over smallest eigenvalue of each block; inf where the smallest is 0, or less.

    Args:
        blocks: symmetric, [..., K, K].

    Returns:
        [...], at least 1; nan for a block that is 0.

    Transformations: all.
    """
    values = jnp.linalg.eigvalsh(blocks)
    smallest, largest = values[..., 0], values[..., -1]
    rounding = blocks.shape[-1] * jnp.finfo(blocks.dtype).eps * largest
    ratio = largest / jnp.where(smallest > rounding, smallest, 1)
    return jnp.where(largest > 0, jnp.where(smallest > rounding, ratio, jnp.inf), jnp.nan)
