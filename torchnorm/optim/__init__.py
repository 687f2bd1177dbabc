"""The torch.optim side: tools that change what an optimizer does with the layers of a model.

batches.py                what the layers read, gathered by hooks
bnp.py                    Batch Normalization Preconditioning, as published
centralize.py             gradient centralization, as published
decay.py                  how an optimizer decays its parameters, and whether it needs them
hooks.py                  before an optimizer's step, and how all is taken off again
in_neuron_coordinates.py  any optimizer in the neurons' coordinates
layer_coordinates.py      the coordinates of one layer in a step
layer_statistics.py       their statistics, from the backward pass to the step
layers.py                 which layers an optimizer learns
one_by_one.py             a layer's parameters and gradients, into the coordinates and back
preconditioner.py         what bnp and quasi_diagonal share
proximal.py               a term that holds parameters near where they lately were
quasi_diagonal.py         Ollivier's quasi-diagonal metric, as published
refusals.py               which optimizers are refused, by what they do
skipped_steps.py          which layers made no step, and how often
standing.py               biases that stand still, where nothing can be looked at
together.py               as one_by_one, of many layers with few operators
wrapped_class.py          the class of an optimizer in neuron coordinates
"""

from torchnorm.optim.bnp import bnp as bnp
from torchnorm.optim.centralize import centralize as centralize
from torchnorm.optim.hooks import remove as remove
from torchnorm.optim.in_neuron_coordinates import in_neuron_coordinates as in_neuron_coordinates
from torchnorm.optim.proximal import proximal as proximal
from torchnorm.optim.quasi_diagonal import quasi_diagonal as quasi_diagonal
from torchnorm.optim.skipped_steps import skipped_steps as skipped_steps

__all__ = [
    "bnp",
    "centralize",
    "in_neuron_coordinates",
    "proximal",
    "quasi_diagonal",
    "remove",
    "skipped_steps",
]
