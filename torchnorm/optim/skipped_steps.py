"""`skipped_steps`: which layers made no step, and how often."""

from typing import Any

from torchnorm.optim.refusals import check_kind, is_wrapped


def skipped_steps(optimizer: Any) -> dict[str, int]:
    """In how many steps each layer made none, because its statistics were of no use.

    That is, of no sample so far (an expert without a token), of a single one, which is its own
    mean, without a `decay` to remember others by, or of a first batch in parts with an input so far
    from 0 (16 deviations; in float64 64) that each part was summed about its own mean. Such a
    layer keeps its parameters, but for weight decay; where it has older statistics it steps with
    those, and nothing is counted; nor is it where the weight has no gradient, as then no optimizer
    makes a step.

    Args:
        optimizer: from `in_neuron_coordinates`.

    Returns:
        {layer: steps}, of a weight of several experts {layer[expert]: steps}. Waits for the device.

    Raises:
        TypeError: for what is no optimizer.
        ValueError: for one that is not in neuron coordinates.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.Sequential(torchnorm.Linear(3, 2, gate=None))
        >>> optimizer = torchnorm.optim.in_neuron_coordinates(
        ...     torch.optim.Adam(model.parameters()), model)
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> torchnorm.optim.skipped_steps(optimizer)  # a single sample
        {'0': 1}
    """
    check_kind(optimizer, "skipped_steps")
    if not is_wrapped(optimizer):
        raise ValueError(
            "optimizer: got one that is not in neuron coordinates, expected one from "
            "in_neuron_coordinates"
        )
    layers = optimizer._neuronwise.layers  # type: ignore[attr-defined]
    return {
        f"{name}[{part}]" if layer.parts else name: int(steps)
        for name, layer in layers.items()
        for part, steps in enumerate(layer.stats.read().skipped.reshape(-1))
    }
