"""The exact Gauss-Newton block of every neuron of a dense layer, and how well conditioned it is."""

import torch


def neuron_blocks(
    x: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor | float | None = None,
    sigma: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Each neuron's block of the Gauss-Newton matrix; as `jaxnorm.analysis.neuron_blocks`.

    Args:
        x: inputs [N, I].
        weight: nonnegative, [N, O].
        mean: of the coordinates, [O, I] or what broadcasts to it, such as of `neuron_moments`.
            None: 0, the plain coordinates.
        sigma: of the coordinates, as `mean`. None: 1.

    Returns:
        [O, I + 1, I + 1], symmetric and positive semidefinite; the bias comes first.

    Raises:
        ValueError: for shapes that do not fit.

    Transformations: torch.func.vmap, torch.compile.

    Example:
        >>> import torch
        >>> from torchnorm.analysis import condition_numbers, neuron_blocks
        >>> x, weight = torch.tensor([[9.0], [11.0]]), torch.ones(2, 1)
        >>> plain = condition_numbers(neuron_blocks(x, weight))
        >>> ours = condition_numbers(neuron_blocks(x, weight, mean=10.0))
        >>> bool(plain[0] > 9000), ours
        (True, tensor([1.]))
    """
    if x.ndim != 2 or weight.ndim != 2 or len(x) != len(weight):
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected [N, O] for x of shape [N, I], got "
            f"{tuple(x.shape)}"
        )
    outputs = weight.shape[1]
    moved = x[:, None, :].expand(-1, outputs, -1)
    if mean is not None:
        moved = moved - torch.as_tensor(mean, device=x.device)
    if sigma is not None:
        moved = moved / torch.as_tensor(sigma, device=x.device)
    u = torch.cat([torch.ones_like(moved[:, :, :1]), moved], dim=2)
    return torch.einsum("noi,noj,no->oij", u, u, weight) / len(x)


def condition_numbers(blocks: torch.Tensor) -> torch.Tensor:
    """Largest over smallest eigenvalue of each block; inf where the smallest is 0, or less.

    Args:
        blocks: symmetric, [..., K, K].

    Returns:
        [...], at least 1; nan for a block that is 0.

    Transformations: torch.func.vmap.
    """
    values = torch.linalg.eigvalsh(blocks)
    smallest, largest = values[..., 0], values[..., -1]
    rounding = blocks.shape[-1] * torch.finfo(blocks.dtype).eps * largest
    ratio = largest / torch.where(smallest > rounding, smallest, 1)
    return torch.where(largest > 0, torch.where(smallest > rounding, ratio, torch.inf), torch.nan)
