"""Is my port right? A Flax and a PyTorch model compared to the last digit, and why they differ.

verify     the comparison: `verify(flax_model, torch_model, inputs)` gives a `Report`
sides      the two models as pure functions on NumPy arrays: linen, nnx, PyTorch
units      the layers of a model; matching, pairing, links: which is which, where its numbers go
inputs     what both models read; layout: channels first and last
checks     whole models: forward, gradients, states, steps of optimizers
walk       each layer alone, fed with what the reference's layer reads
causes     why a layer departs: each is tested by repairing it
report     what was found; text, html, junit: as it is read
command    `python -m parity_tests.port`; fixture: `verify_port` for pytest
"""

from parity_tests.port.errors import CannotCompare as CannotCompare
from parity_tests.port.report import Report as Report
from parity_tests.port.verify import verify as verify

__all__ = ["CannotCompare", "Report", "verify"]
