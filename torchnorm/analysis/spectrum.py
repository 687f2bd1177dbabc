"""Eigenvalues and spectral densities of a symmetric map that is only known by its products."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from torchnorm.analysis.curvature import Params, Product


class Spectrum(NamedTuple):
    """Ritz values and how much of the spectrum each stands for; as in `jaxnorm.analysis`.

    Attributes:
        values: in ascending order, [K], float64.
        weights: of the same shape; they add up to 1.
    """

    values: torch.Tensor
    weights: torch.Tensor

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


def lanczos(product: Product, params: Params, steps: int, *, seed: int = 0) -> Spectrum:
    """Ritz values of a symmetric map after some steps of Lanczos; as `jaxnorm.analysis.lanczos`.

    Args:
        product: v -> A v on dicts like `params`.
        params: {name: tensor}; shapes, dtypes and devices matter.
        steps: of Lanczos, each one product; at most the number of parameters.
        seed: of the start, which is normal.

    Returns:
        A `Spectrum` of at most `steps` values.

    Raises:
        ValueError: for less than one step, or a product that is not finite.

    Transformations: none.

    Example:
        >>> import torch
        >>> from torchnorm.analysis import lanczos
        >>> diagonal = torch.tensor([1.0, 2.0, 10.0])
        >>> found = lanczos(lambda v: {"w": diagonal * v["w"]}, {"w": torch.zeros(3)}, 3)
        >>> found.values.round(decimals=4)
        tensor([ 1.,  2., 10.], dtype=torch.float64)
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected a positive integer")
    sizes = [parameter.numel() for parameter in params.values()]

    def flat(v: torch.Tensor) -> torch.Tensor:
        pairs = zip(params.items(), v.split(sizes), strict=True)
        tree = {name: part.view(p.shape).to(p.device, p.dtype) for (name, p), part in pairs}
        image = product(tree)
        parts = [image[name].detach().reshape(-1).to("cpu", torch.float64) for name in params]
        return torch.cat(parts)

    generator = torch.Generator("cpu").manual_seed(seed)
    start = torch.randn(sum(sizes), generator=generator, dtype=torch.float64, device="cpu")
    return _lanczos(flat, start, min(steps, len(start)))


def _lanczos(
    flat: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, steps: int
) -> Spectrum:
    basis = start.new_zeros(steps, len(start))
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    for k in range(steps):
        image = flat(basis[k])
        if not image.isfinite().all():
            raise ValueError("product: got numbers that are not finite, expected finite ones")
        diagonal.append(float(basis[k] @ image))
        for _ in range(2):  # once leaves what rounding has mixed in
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        norm = float(image.norm())
        scale = max(map(abs, [*diagonal, *beside]), default=0.0)
        if k + 1 == steps or norm <= scale * len(start) * torch.finfo(torch.float64).eps:
            break
        beside.append(norm)
        basis[k + 1] = image / norm
    size = len(diagonal)
    off = start.new_tensor(beside[: size - 1])
    middle = torch.diag(start.new_tensor(diagonal))
    tridiagonal = middle + torch.diag(off, 1) + torch.diag(off, -1) if size > 1 else middle
    values, vectors = torch.linalg.eigh(tridiagonal)
    return Spectrum(values, vectors[0] ** 2)


def spectral_density(
    product: Product, params: Params, steps: int, *, probes: int = 4, seed: int = 0
) -> Spectrum:
    """The whole spectrum as a distribution; as `jaxnorm.analysis.spectral_density`.

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

    Transformations: none.

    Example:
        >>> import torch
        >>> from torchnorm.analysis import spectral_density
        >>> d = torch.arange(100.0)
        >>> found = spectral_density(lambda v: {"w": d * v["w"]}, {"w": d}, 20, probes=8)
        >>> print(abs(found.moment(1) - 49.5) < 5)  # the mean of the eigenvalues
        True
    """
    if probes < 1:
        raise ValueError(f"probes: got {probes}, expected a positive integer")
    found = [lanczos(product, params, steps, seed=seed + n) for n in range(probes)]
    values = torch.cat([each.values for each in found])
    weights = torch.cat([each.weights for each in found]) / probes
    order = values.argsort()
    return Spectrum(values[order], weights[order])
