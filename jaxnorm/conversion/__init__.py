"""A whole model at once: trace a forward pass, follow each layer's output to its activation.

gate_search.py      layer -> gate, from the traced program; extracted_gate.py: activations in it
handover.py         probes on their way to where an activation is seen
report.py           the table, and how to name a gate that is seen elsewhere
intercept.py        Flax linen: interceptors that run the rule, or mark the layers
nnx_trace.py        Flax nnx: the modules of a model, and a marked copy to trace
nnx_handover.py     Flax nnx: how a converted model hands its probes over
"""
