"""Products with a loss's Hessian and Gauss-Newton matrix, in the coordinates of neurons too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchnorm.coordinates import pull_back
from torchnorm.optim.layers import Pair, changed, check_model, recording, unwrapped
from torchnorm.statistics import merging

Params = dict[str, torch.Tensor]
Product = Callable[[Params], Params]
"""A symmetric linear map of dicts like the parameters."""


def hessian_product(loss: Callable[[Params], torch.Tensor], params: Params) -> Product:
    """Products with the Hessian of a loss; as `jaxnorm.analysis.hessian_product`.

    Args:
        loss: {name: tensor} -> a scalar, of `torch.func.functional_call`; of the network without
            the rule (``gradient="plain"``, or PyTorch's own layers).
        params: ``dict(model.named_parameters())``, where.

    Returns:
        A function of a dict like `params`.

    Raises:
        RuntimeError: (by PyTorch) for a loss that is no scalar, or an operation without forward
            mode (a fused attention).

    Transformations: torch.func.vmap over v.

    Example:
        >>> import torch
        >>> from torchnorm.analysis import hessian_product
        >>> params = {"w": torch.tensor(3.0), "b": torch.tensor(2.0)}
        >>> product = hessian_product(lambda p: p["w"] ** 2 * p["b"], params)
        >>> v = {"w": torch.tensor(1.0), "b": torch.tensor(0.0)}
        >>> {name: float(value) for name, value in product(v).items()}
        {'w': 4.0, 'b': 6.0}
    """
    at = _detached(params)
    return lambda v: torch.func.jvp(torch.func.grad(loss), (at,), (v,))[1]


def gauss_newton_product(
    model: Callable[[Params], torch.Tensor],
    loss: Callable[[torch.Tensor], torch.Tensor],
    params: Params,
) -> Product:
    """Products with the generalized Gauss-Newton matrix; as in `jaxnorm.analysis`.

    Args:
        model: {name: tensor} -> outputs.
        loss: outputs -> a scalar.
        params: as in `hessian_product`.

    Returns:
        As `hessian_product`.

    Raises:
        RuntimeError: as `hessian_product`.

    Transformations: torch.func.vmap over v.

    Example:
        >>> import torch
        >>> from torchnorm.analysis import gauss_newton_product
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> product = gauss_newton_product(
        ...     lambda p: x @ p["w"], lambda y: (y**2).sum() / 2, {"w": torch.zeros(2)})
        >>> product({"w": torch.tensor([1.0, 0.0])})["w"]  # a column of x^T x
        tensor([10., 14.])
    """
    at = _detached(params)

    def product(v: Params) -> Params:
        y, moved, *_ = torch.func.jvp(model, (at,), (v,))
        curved = torch.func.jvp(torch.func.grad(loss), (y,), (moved,))[1]
        return torch.func.vjp(model, at)[1](curved)[0]

    return product


def in_coordinates(product: Product, model: nn.Module) -> Product:
    """The same curvature in the coordinates of neurons; as in `jaxnorm.analysis`.

    Args:
        product: of `hessian_product` or `gauss_newton_product`.
        model: whose layers have statistics of `torchnorm.optim.in_neuron_coordinates`, after one
            step at least; layers without any stay as they are.

    Returns:
        A product of dicts like ``dict(model.named_parameters())``.

    Raises:
        TypeError: for a model that is no module.
        ValueError: no layer has statistics.

    Transformations: none.

    Example:
        >>> import torch
        >>> import torchnorm
        >>> from torchnorm.analysis import in_coordinates
        >>> layer = torchnorm.Linear(3, 2, gate=None)
        >>> optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        >>> optimizer = torchnorm.optim.in_neuron_coordinates(optimizer, layer)
        >>> layer(torch.randn(8, 3)).square().sum().backward()
        >>> optimizer.step()
        >>> identity = in_coordinates(lambda v: v, layer)  # P^T P
        >>> identity(dict(layer.named_parameters()))["bias"].shape
        torch.Size([2])
    """
    check_model(model)
    layers = _with_statistics(unwrapped(model))

    def back(step: Params) -> Params:
        new = dict(step)
        for (weight, bias), (layer, at) in layers.items():
            pair = Pair(step[weight], None if bias is None else step[bias])
            dtype = torch.promote_types(at.scale.dtype, pair.weight.dtype)
            pair = changed(pair, layer, dtype, lambda flat, at=at: Pair(*pull_back(*flat, at)))
            new[weight] = pair.weight
            if bias is not None:
                new[bias] = pair.bias
        return new

    def transformed(v: Params) -> Params:
        out, transposed, *_ = torch.func.vjp(back, v)
        return transposed(product(out))[0]

    return transformed


def _with_statistics(model: nn.Module) -> dict[tuple[str, str | None], tuple[Any, Any]]:
    """(name of the weight, of the bias) -> (layer, its coordinates)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for layer in recording(model).values():
        stats = layer.neuron_stats
        if stats is None or not stats.usable:
            continue
        statistics = stats.read().map(torch.Tensor.detach)
        weight, bias = layer.own_pair()
        pair = names[id(weight)], names.get(id(bias))
        found[pair] = layer, merging.coordinates(statistics, settles=stats.settles)
    if not found:
        raise ValueError(
            "model: got one without statistics, expected those of in_neuron_coordinates after a "
            "step of its optimizer"
        )
    return found


def _detached(params: Params) -> Params:
    return {name: parameter.detach() for name, parameter in params.items()}
