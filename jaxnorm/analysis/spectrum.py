"""Eigenvalues and spectral densities of a symmetric map that is only known by its products."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxnorm.analysis.curvature import Product


class Spectrum(NamedTuple):
    """Ritz values and how much of the spectrum each stands for.

    Attributes:
        values: in ascending order, [K], float64.
        weights: of the same shape; they add up to 1. The share of all eigenvalues near a value, in
            expectation over random starts.
    """

    values: np.ndarray
    weights: np.ndarray

    @property
    def largest(self) -> float:
        """The largest eigenvalue, which Lanczos finds first."""
        return float(self.values[-1])

    @property
    def smallest(self) -> float:
        """The smallest one: of a positive semidefinite map of low rank, about 0."""
        return float(self.values[0])

    def moment(self, power: int) -> float:
        """The mean over the spectrum of eigenvalue^power: trace(A^power) / size."""
        return float((self.weights * self.values**power).sum())


def lanczos(product: Product, params: Any, steps: int, *, seed: int = 0) -> Spectrum:
    """Ritz values of a symmetric map after some steps of Lanczos from one random start.

        A V = V T + beta v e^T,   V orthonormal, T tridiagonal;   values = eigenvalues of T,
        weights = squares of the first components of its eigenvectors

    The ends of the spectrum come first, to several digits after some ten steps. Every new vector is
    made orthogonal to all before, twice, so no eigenvalue appears as its own ghost.

    Args:
        product: v -> A v on trees like `params`, as of `hessian_product`; A symmetric.
        params: a tree of arrays; shapes and dtypes matter.
        steps: of Lanczos, each one product; at most the number of parameters. Memory: so many
            vectors of the size of the parameters.
        seed: of the start, which is normal.

    Returns:
        A `Spectrum` of at most `steps` values: fewer, where the start lies in an invariant subspace
        of smaller dimension.

    Raises:
        ValueError: for less than one step, or a product that is not finite.

    Transformations: none; the loop runs in Python, the product compiled.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.analysis import lanczos
        >>> matrix = jnp.diag(jnp.array([1.0, 2.0, 10.0]))
        >>> lanczos(lambda v: matrix @ v, jnp.zeros(3), 3).values.round(4)
        array([ 1.,  2., 10.])

    References:
        Golub and Meurant, Matrices, Moments and Quadrature, 2010, chapters 4 and 6.
    """
    return _from_starts(product, params, steps, [seed])[0]


def _from_starts(product: Product, params: Any, steps: int, seeds: Sequence[int]) -> list[Spectrum]:
    """One for each seed; the product is compiled once."""
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected a positive integer")
    flat, unravel = ravel_pytree(params)
    compiled = jax.jit(lambda v: ravel_pytree(product(unravel(v)))[0])
    starts = [np.random.default_rng(seed).normal(size=flat.size) for seed in seeds]
    return [_lanczos(compiled, start, flat.dtype, min(steps, flat.size)) for start in starts]


def _lanczos(compiled: Any, start: np.ndarray, dtype: Any, steps: int) -> Spectrum:
    basis = np.zeros((steps, start.size))
    basis[0] = start / np.linalg.norm(start)
    diagonal, beside = [], []
    for k in range(steps):
        image = np.asarray(compiled(jnp.asarray(basis[k], dtype)), np.float64)
        if not np.isfinite(image).all():
            raise ValueError("product: got numbers that are not finite, expected finite ones")
        diagonal.append(basis[k] @ image)
        for _ in range(2):  # once leaves what rounding has mixed in
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        norm = np.linalg.norm(image)
        scale = max(map(abs, [*diagonal, *beside]), default=0.0)
        if k + 1 == steps or norm <= scale * start.size * np.finfo(np.float64).eps:
            break
        beside.append(norm)
        basis[k + 1] = image / norm
    size = len(diagonal)
    tridiagonal = (
        np.diag(diagonal) + np.diag(beside[: size - 1], 1) + np.diag(beside[: size - 1], -1)
    )
    values, vectors = np.linalg.eigh(tridiagonal)
    return Spectrum(values, vectors[0] ** 2)


def spectral_density(
    product: Product, params: Any, steps: int, *, probes: int = 4, seed: int = 0
) -> Spectrum:
    """The whole spectrum as a distribution: Lanczos from several random starts, put together.

        trace(f(A)) / size = E_v[v^T f(A) v] ~ mean over probes of sum_k weight_k f(value_k)

    exact in expectation for polynomials f up to degree ``2 steps - 1`` (stochastic Lanczos
    quadrature).

    Args:
        product: as in `lanczos`.
        params: as in `lanczos`.
        steps: as in `lanczos`, for each start.
        probes: how many starts.
        seed: as in `lanczos`.

    Returns:
        A `Spectrum` with the values of all starts; the weights add up to 1.

    Raises:
        ValueError: as `lanczos`, and for less than one start.

    Transformations: none, as `lanczos`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.analysis import spectral_density
        >>> diagonal = jnp.arange(100.0)
        >>> found = spectral_density(lambda v: diagonal * v, jnp.zeros(100), 20, probes=8)
        >>> print(abs(found.moment(1) - 49.5) < 5)  # the mean of the eigenvalues
        True

    References:
        Ghorbani, Krishnan and Xiao, ICML 2019 (from memory); Ubaru, Chen and Saad, SIAM J. Matrix
        Anal. Appl. 38(4), 2017 (from memory).
    """
    if probes < 1:
        raise ValueError(f"probes: got {probes}, expected a positive integer")
    found = _from_starts(product, params, steps, range(seed, seed + probes))
    values = np.concatenate([each.values for each in found])
    weights = np.concatenate([each.weights for each in found]) / probes
    order = np.argsort(values)
    return Spectrum(values[order], weights[order])
