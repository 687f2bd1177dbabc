"""What can be proven about the rule, and the numbers that check it; the page is README.md.

gated.py    inputs of a neuron behind a gate: exact moments of gated Gaussian inputs
claims.py   every claim of the page as a number that can be wrong
spectra.py  curvature of networks while they train, in four kinds of coordinates
figures.py  the pictures
job.py      `python -m experiments theory`
"""
