"""The Optax side: any optimizer in the neurons' coordinates, and other optimizer tools.

bnp.py                    Batch Normalization Preconditioning, as published
centralize.py             gradient centralization, as published
in_neuron_coordinates.py  any optimizer in the neurons' coordinates
inner.py                  what the optimizer inside does with parameters
layers.py                 which statistics belong to which parameters
preconditioner.py         what bnp and quasi_diagonal share
proximal.py               a term that holds parameters near where they lately were
quasi_diagonal.py         Ollivier's quasi-diagonal metric, as published
skipped_steps.py          which layers made no step, and how often
update_statistics.py      what a step does to the statistics
"""
