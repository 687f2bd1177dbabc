"""`Linear`, with the rule in its backward pass."""

from typing import Any

import torch
from torch import nn

from torchnorm import checks
from torchnorm.functional import neuronwise_linear
from torchnorm.modules.base import Neuronwise


class Linear(Neuronwise, nn.Linear):
    """`torch.nn.Linear` with the neuron-wise rule; see `torchnorm.functional.neuronwise_linear`.

    Forward (exact):      z [..., O] = x [..., I] W^T + b, PyTorch's to the last bit
    Backward (default):   PyTorch's, to the last bit; an optimizer from
                          `torchnorm.optim.in_neuron_coordinates` has the statistics recorded
    Backward (modified):  with ``Rule(gradient="preconditioned")``: g_x true; g_W and g_b by the
                          rule

    A subclass of PyTorch's module with its parameters (``weight`` [O, I], ``bias`` [O]), its
    initial values and every one of its arguments, by position or keyword: checkpoints move both
    ways, strictly. Statistics are buffers that an optimizer adds, and not in the state_dict.

    Args:
        *args: the arguments of `torch.nn.Linear`.
        gate: (required, keyword) the activation that follows the layer; its derivative gates the
            neuron: it says on which samples, or how much, the neuron learns. A name of `torch.nn`
            (``"relu"``), an elementwise callable, or None if none follows. It is not applied. With
            `torchnorm.DEFERRED` the layer returns (z, handle), see `torchnorm.tell_gate`.
        rule: (keyword, default ``Rule()``) what the gradient is standardized by, and how; see
            `torchnorm.Rule`.
        process_group: (keyword, default None) processes over which the batch is spread, as of
            SyncBatchNorm. None: this one's alone, for recorded statistics all (see
            `torchnorm.optim.in_neuron_coordinates`).
        **kwargs: the arguments of `torch.nn.Linear`.

    Raises:
        TypeError, ValueError: as `torchnorm.functional.neuronwise_linear`.

    Transformations, dtypes, numerics, cost: as `torchnorm.functional.neuronwise_linear`.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.Sequential(
        ...     torchnorm.Linear(5, 16, gate="relu"),
        ...     torch.nn.ReLU(),
        ...     torchnorm.Linear(16, 3, gate=None),
        ... )
        >>> model[0]
        Linear(in_features=5, out_features=16, bias=True, gate='relu', rule=Rule())
        >>> model(torch.ones(2, 5)).shape
        torch.Size([2, 3])
    """

    def forward(self, input: torch.Tensor) -> Any:
        """Apply the layer to the last axis of input [..., I]; returns z [..., O]."""
        stats = self.neuron_stats
        if stats is not None and (self.training or stats.in_eval):
            checks.check_dense(input=input)  # in every step, not in those alone that record
        # (What does not fit is left to the function, which says so.)
        if self.is_plain() and input.ndim and input.is_floating_point():
            if input.is_nested or input.shape[-1] == self.in_features:
                return nn.Linear.forward(self, input)
        return neuronwise_linear(input, self.weight, self.bias, **self.settings())
