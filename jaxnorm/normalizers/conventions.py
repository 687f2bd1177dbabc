"""What each framework takes for granted in its normalizers, behind one argument.

Where the two agree there is nothing here; `parity_tests/DIFFERENCES.md` measures where they do not.
"""

import math
import numbers
from typing import Any, Literal, NamedTuple

Name = Literal["flax", "torch"]

#: The value of an argument that stands for the convention's own.
DEFAULT = "convention"


class Convention(NamedTuple):
    """The defaults of one framework."""

    momentum: float  # of BatchNorm: the weight of the old statistics
    unbiased: bool  # whether N / (N - 1) times the batch's variance is stored
    batch_epsilon: float  # of BatchNorm
    epsilon: float  # of GroupNorm, LayerNorm and InstanceNorm
    rms_epsilon: float | None  # None: the spacing of the numbers it computes in
    groups: int | None  # None: has to be given
    instance_affine: bool  # whether InstanceNorm has a scale and a bias


CONVENTIONS = {
    "flax": Convention(0.99, False, 1e-5, 1e-6, 1e-6, 32, True),
    "torch": Convention(0.9, True, 1e-5, 1e-5, None, None, False),
}


def convention_of(name: Any) -> Convention:
    """The convention of that name. Raises a ValueError for any other."""
    if name not in CONVENTIONS:
        raise ValueError(f"convention: got {name!r}, expected 'flax' or 'torch'")
    return CONVENTIONS[name]


def epsilon_of(value: Any, default: Any, name: str = "epsilon") -> Any:
    """The number to add to a variance. Raises a ValueError unless it is finite and above 0."""
    if _is_default(value):
        return default
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value!r}, expected a finite number above 0")
    return float(value)


def momentum_of(value: Any, default: float, *, average: bool = True) -> float | None:
    """A share, or None, if there may be none. Raises a ValueError for anything else."""
    if _is_default(value):
        return default
    if value is None and not average:
        raise ValueError("momentum: got None, expected a number from 0 to 1")
    if value is not None and not (_is_number(value) and 0 <= value <= 1):
        raise ValueError(
            f"momentum: got {value!r}, expected a number from 0 to 1, or None for the average over "
            "all batches"
        )
    return value


def groups_of(value: Any, default: Any, channels: int) -> int:
    """The number of groups. Raises a ValueError unless it is given and divides the channels."""
    groups: Any = default if _is_default(value) else value
    whole = isinstance(groups, numbers.Integral) and not isinstance(groups, bool)
    if not whole or int(groups) < 1 or channels % int(groups):
        raise ValueError(f"num_groups: got {groups!r}, expected a divisor of {channels} channels")
    return int(groups)


def _is_default(value: Any) -> bool:
    return isinstance(value, str) and value == DEFAULT


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
