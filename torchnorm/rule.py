"""The rule: which member of the family of input standardizations the backward pass uses."""

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

Weighting = Literal["gate", "gate_squared", "signed", "uniform", "error"]
Scale = Literal["neuron", "layer", "none"]
Gradient = Literal["plain_with_statistics", "preconditioned", "standardized", "plain"]
StepSize = Literal["plain", "standardized"]
StatisticsDtype = Literal["bfloat16"]

_CHOICES = {
    "weighting": get_args(Weighting),
    "scale": get_args(Scale),
    "gradient": (None, *get_args(Gradient)),
    "step_size": get_args(StepSize),
    "statistics_dtype": (None, *get_args(StatisticsDtype)),
}
_KNOBS = ("shrinkage", "damping", "epsilon", "decay")
_COUNTS = ("statistics_rows", "statistics_every")


@dataclass(frozen=True, kw_only=True)
class Rule:
    r"""What the backward pass standardizes by; the forward pass never changes.

    With inputs ``x[n,i]``, pre-activations ``z[n,o] = sum_i x[n,i] W[o,i] + b[o]``, their gradient
    ``g_z[n,o]`` and a sample weight ``s[n,o] >= 0``, each neuron ``o`` has the input moments

        mean[o,i]   = sum_n s x / sum_n s
        var[o,i]    = sum_n s (x - mean)^2 / sum_n s
        sigma[o,i]^2 = var[o,i] + damping * mean_i(var[o,i]) + epsilon

    and is standardized with sigma / sqrt(mean_i(sigma^2)) (see `step_size`).

    Attributes:
        weighting: the sample weight s, in words: which samples a neuron's moments are taken over.
            ``"gate"`` (default): ``|phi'(z)|``, for ReLU the samples on which the neuron is active
            (the neuron-wise rule). ``"gate_squared"``: ``phi'(z)^2``. ``"uniform"``: 1, the layer's
            own moments (Lange, Helfrich & Ye, JMLR 23(72), 2022). ``"error"``: ``g_z^2`` (Ollivier,
            arXiv 1303.0818). ``"signed"``: ``phi'(z)`` with its sign, for the mean only, so it
            needs ``scale="layer"`` or ``"none"``. Static.
        scale: ``"neuron"`` (default): sigma from the neuron's own variance. ``"layer"``: sigma from
            the layer's variance (saves one product). ``"none"``: sigma = 1, centering only. Static.
        gradient: what is handed to the optimizer. ``"plain_with_statistics"``: PyTorch's gradient,
            bit for bit, and beside it the statistics, for `in_neuron_coordinates`, which makes any
            optimizer work in the standardized coordinates; without that it is ordinary training.
            ``"preconditioned"``: the gradient in the standardized coordinates, pulled back,
            ``g_W <- (g_W - mean g_b) / sigma^2`` and ``g_b <- g_b - sum_i mean g_W``; for one call
            of the layer always a descent direction. No state and no wrapper, and for SGD the same
            steps; momentum remembers steps whose means are old and does worse than inside, and Adam
            and its like diverge. ``"standardized"``: ``(g_W - mean g_b) / sigma``, not pulled back;
            only for an optimizer that pulls its step back itself. ``"plain"``: PyTorch's gradient
            and no statistics. None (default): "plain_with_statistics" in layers and converted
            models, "preconditioned" in the functions `neuronwise_*`. Static.
        shrinkage: (kappa) in pseudo-samples, >= 0. A neuron seen by ``n_eff = (sum s)^2 / sum s^2``
            samples gets ``n_eff / (n_eff + kappa)`` of its own moments and the rest of the
            layer's; one that is never active gets the layer's. Default 8. May be a 0-d tensor.
        damping: relative to the neuron's mean variance, unit 1, >= 0. Default 0.1. May be a 0-d
            tensor.
        epsilon: absolute, unit of x^2, >= 0, added inside the root. Default 0: what is relative
            does not depend on the unit of x. May be a 0-d tensor.
        decay: the share of the old in tracked statistics, in [0, 1). Default 0: this batch only.
            Good values: 0.99 for batches below about 100, 0.9 above. May be a 0-d
            tensor.
        statistics_rows: take the neurons' own sums over at least so many rows of a batch, which
            saves most of what statistics cost; None (default): over all. These sums say how far a
            neuron's mean is from the layer's, and how many times as large its variance is; the
            layer's own moments are of all rows. A row is a whole image of a convolution, and else a
            sample: a token, where x is [B, T, C]. Of N rows one block of 1 to 64 is taken out of
            every k, k the largest divisor of N with ``N / k >= statistics_rows`` (1, hence all
            rows, if N is prime): so an ordered batch is mixed. Each process takes of its own share.
            Of those that a `neuron_mask` counts, exactly so many, evenly spaced. Static.
        statistics_every: how many steps tracked statistics are used for, at most. They are taken
            in every step at first and ever more seldom from then on: the interval is a tenth of the
            steps made so far (see `is_due`). 1: in every step. None (default): 16; with a
            `decay`, whose average wants every batch, 1. Static.
        smoothing: the share of the old where statistics are taken anew, in [0, 1), so that the
            noise of one batch is not used for many steps: of a neuron's mean and sigma^2, and of
            the layer's own moments. Not while they are taken in every step, and not with a `decay`,
            which is an average already. Default 0.5. Static.
        statistics_dtype: of what is kept from step to step for each single weight, a mean and a
            scale. None (default): at least float32. ``"bfloat16"``: half of the memory. The mean is
            kept as its distance from the layer's, so that both are true to 0.4 % (those of the
            first batch to 1.5 %); so are the sums of a batch that they are made of. Each addition
            of such sums rounds, too: not for a batch in hundreds of parts (micro-batches, steps of
            a recurrence, rows that `vmap` maps), nor for one whose first parts are of fewer than
            four samples with means far from 0. Only for statistics that are used for several steps:
            averages over batches, which a `decay` makes, would lose their digits. Static.
        step_size: how large a step is. ``"plain"`` (default): as large as the plain optimizer's,
            so that its rate stays right: each neuron's sigma is divided by its own root mean square
            over the inputs that vary, and so says only what an input's scale is among the others.
            ``"standardized"``: sigma as it is, the step of inputs of variance 1, which does not
            depend on the unit of x. Its rate has to be searched for: the best one is up to a
            hundred times smaller than the plain one, with SGD as ``sigma^2``. Static.

    Raises:
        ValueError: for a choice that does not exist, a knob that is negative or not finite.
        TypeError: for a knob that is not a number.

    Transformations: ``shrinkage``, ``damping``, ``epsilon`` and ``decay`` may be 0-d tensors, so a
    sweep over them is one ``torch.func.vmap``; no gradient flows to them.

    Example:
        >>> from torchnorm import Rule
        >>> Rule(scale="layer", damping=0.05).weighting
        'gate'
        >>> Rule(damping=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: damping: got -1.0, expected a finite number >= 0
    """

    weighting: Weighting = "gate"
    scale: Scale = "neuron"
    gradient: Gradient | None = None
    shrinkage: Any = 8.0
    damping: Any = 0.1
    epsilon: Any = 0.0
    decay: Any = 0.0
    statistics_rows: int | None = None
    statistics_every: int | None = None
    smoothing: float = 0.5
    step_size: StepSize = "plain"
    statistics_dtype: StatisticsDtype | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                options = ", ".join(repr(option) for option in allowed)
                raise ValueError(f"{name}: got {value!r}, expected one of {options}")
        if self.weighting == "signed" and self.scale == "neuron":
            raise ValueError(
                "weighting: got 'signed' with scale 'neuron', but a signed weight has no variance; "
                "use scale='layer' or scale='none'"
            )
        for name in _KNOBS:
            object.__setattr__(self, name, _check_knob(name, getattr(self, name)))
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        object.__setattr__(self, "smoothing", _check_share("smoothing", self.smoothing))
        if self.statistics_dtype is not None and (self.remembers or self.interval == 1):
            raise ValueError(
                f"statistics_dtype: got {self.statistics_dtype!r}, expected None where statistics "
                "are averages (decay > 0) or taken in every step (statistics_every=1)"
            )

    @property
    def remembers(self) -> bool:
        """Whether tracked statistics are averages over steps, as far as is known."""
        return not isinstance(self.decay, float) or self.decay != 0

    @property
    def interval(self) -> int:
        """What `statistics_every` is, or stands for."""
        if self.statistics_every is None:
            return 1 if self.remembers else INTERVAL
        return self.statistics_every

    @property
    def knobs(self) -> tuple[Any, Any, Any]:
        """The continuous knobs: shrinkage, damping, epsilon."""
        return self.shrinkage, self.damping, self.epsilon

    def __str__(self) -> str:
        """The knobs that differ from the defaults."""
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if not _same(getattr(self, field.name), field.default)
        ]
        return f"Rule({', '.join(changed)})"


def _same(value: Any, default: Any) -> bool:
    """Equal, for anything that is not a tensor."""
    return isinstance(value, str | float | int | None) and value == default


def _check_count(name: str, value: Any) -> None:
    """Refuse what is neither a positive int nor None."""
    if value is None:
        return
    expected = "an int >= 1 or None"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected {expected}")


def _check_knob(name: str, value: Any) -> Any:
    """Return a number as float, leave a 0-d tensor as it is, refuse the rest."""
    if isinstance(value, torch.Tensor) and value.shape == ():
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected a finite number >= 0")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: got {value}, expected a finite number >= 0")
    if name == "decay" and float(value) >= 1:
        raise ValueError(f"decay: got {value}, expected a number in [0, 1), the share of the old")
    return float(value)


def _check_share(name: str, value: Any) -> float:
    """Return a share of the old, which must be a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected a number in [0, 1)")
    share = float(value)
    if not 0 <= share < 1:
        raise ValueError(f"{name}: got {value}, expected a number in [0, 1), the share of the old")
    return share


INTERVAL = 16
"""How many steps statistics are used for, at most, where `statistics_every` is None."""


def is_due(step: Any, age: Any, every: int = INTERVAL) -> Any:
    """Whether statistics are taken in a step: interval = step / 10, at least 1, at most `every`.

    At first the layers' inputs change fast, and so do the coordinates: with old ones the largest
    safe rate is up to ten times smaller. Later they change with the logarithm of the steps.

    Args:
        step: how many steps were made before.
        age: how many of them since statistics were taken last; 0 before the first.
        every: see `Rule.statistics_every`.
    """
    return (age >= step // 10) | (age >= every)


def is_thinned(step: Any, every: int = INTERVAL) -> Any:
    """Whether statistics are used for more than one step, at a step (see `is_due`)."""
    return (step >= 20) & (every > 1)


def due_steps(steps: int, every: int = INTERVAL) -> list[bool]:
    """In which of the first so many steps of a run statistics are taken.

    interval(step) = step / 10, at least 1, at most `every`; taken where it has passed.

    Args:
        steps: how many.
        every: see `Rule.statistics_every`.

    Returns:
        For each step whether they are.

    Raises:
        Nothing of its own.

    Example:
        >>> from torchnorm.rule import due_steps
        >>> due = due_steps(1000)
        >>> all(due[:20]), sum(due), sum(due[-160:])
        (True, 94, 10)
    """
    found, age = [], 0
    for step in range(steps):
        found.append(is_due(step, age, every))
        age = 1 if found[-1] else age + 1
    return found


NEURONWISE = Rule()
"""The neuron-wise rule with its defaults."""

CENTERED = Rule(scale="none")
"""Centering on the neuron's active region, no scaling.

With the mean of the data; gradient centralization (Yong et al., 2020), which subtracts that of the
gradient and needs no data, is `torchnorm.optim.centralize`."""

BNP = Rule(weighting="uniform", step_size="standardized", statistics_every=1)
"""Layer-wide moments: the core of Batch Normalization Preconditioning (Lange et al., 2022).

With the authors' absolute sigma, of every batch; ``Rule(weighting="uniform")`` has steps of the
plain size. The published algorithm, with its running moments, damping and factor of the step, for
SGD with momentum, is `torchnorm.optim.bnp`."""

QUASI_DIAGONAL = Rule(
    weighting="error",
    shrinkage=0.0,
    damping=1e-6,
    epsilon=1e-12,
    step_size="standardized",
    statistics_every=1,
)
"""Ollivier's quasi-diagonal metric (arXiv 1303.0818) up to its factor 1 / sum_n g_z^2.

The damping is what float32 can resolve; the published update has none. With that factor, one per
neuron, and its average, which weighs the first batch in full: `torchnorm.optim.quasi_diagonal`."""

PLAIN = Rule(gradient="plain")
"""The ordinary gradient, bit for bit: the off switch."""
