"""Planted bugs: the proof that the matrix and the situations can fail.

Each is one substitution in one file of one package, whose old text must occur there exactly once.
The packages are twins: a bug is planted in both, unless only one of them has what it spoils.

mutant.py            what a planted bug is
in_the_matrix.py     those that `python -m parity_tests` shows
in_normalizers.py    and those of them that are in the forward pass
in_the_step_size.py  those in how large a step is, which either shows
in_situations.py     those that `python -m parity_tests.situations` shows
"""

from parity_tests.mutants import in_normalizers, in_situations, in_the_matrix, in_the_step_size
from parity_tests.mutants.mutant import Mutant as Mutant

MUTANTS = (
    *in_the_matrix.MUTANTS,
    *in_normalizers.MUTANTS,
    *in_the_step_size.MUTANTS,
    *in_situations.MUTANTS,
)
