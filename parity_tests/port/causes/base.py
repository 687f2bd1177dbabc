"""A cause, what it is tested on, and the rewriting of functions with which it is repaired."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch.overrides import TorchFunctionMode

from parity_tests.port.checks import Setting
from parity_tests.port.functions import names_of
from parity_tests.port.report import Finding
from parity_tests.port.sides.base import Key, Run
from parity_tests.port.walk import Compared, Step, Walk, compare, one_side


@dataclass
class Function:
    """A function of PyTorch as it is called: `values` has its arguments by name."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def values(self) -> dict[str, Any]:
        """Its arguments by name, those that were given."""
        return dict(zip(names_of(self.function), self.args, strict=False)) | self.kwargs

    def again(self, **new: Any) -> Any:
        """Call it, with some arguments replaced."""
        names = names_of(self.function)
        args = [new.pop(name, value) for name, value in zip(names, self.args, strict=False)]
        args += self.args[len(names) :]
        return self.function(*args, **{**self.kwargs, **new})


#: Of elementwise functions and sums; far below what tells two causes apart.
SAME = {"float64": 1e-9, "float32": 3e-6}

Rewrite = Callable[[Function], Any]


@dataclass(frozen=True)
class Hypothesis:
    """What Flax may compute, as a rewriting of what PyTorch does.

    Attributes:
        text: both sides, in words.
        rewrite: what a function of the layer gives instead.
        name: of the cause, if it has another for this one.
        mend: likewise.
    """

    text: str
    rewrite: Rewrite
    name: str = ""
    mend: str = ""


class Rewriting(TorchFunctionMode):
    """Replaces what functions give in one layer.

    Args:
        opened: calls that are at work, from the outside to the inside; it changes.
        steps: calls of layers that both sides have.
        scope: the paths of the layer that is meant.
        rewrite: what is computed instead.
    """

    def __init__(
        self, opened: Sequence[Key], steps: set[Key], scope: str, rewrite: Rewrite
    ) -> None:
        super().__init__()
        self.opened, self.steps, self.scope, self.rewrite = opened, steps, scope, rewrite

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inner = next((key for key in reversed(self.opened) if key in self.steps), None)
        if inner is None or inner[0] != self.scope:
            return func(*args, **kwargs)
        return self.rewrite(Function(func, tuple(args), kwargs))


@dataclass
class Case:
    """A layer that departs.

    Attributes:
        setting: the two models.
        walk: what every layer read and returned.
        number: of the step of the layer.
        departing: what departs in it.
    """

    setting: Setting
    walk: Walk
    number: int
    departing: list[Compared]
    _cache: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> Step:
        """The layer's call on both sides."""
        return self.walk.steps[self.number]

    @property
    def flax_path(self) -> str:
        """Of the layer."""
        return self.step.flax.key[0]

    @property
    def torch_path(self) -> str:
        """Of the layer."""
        return self.step.torch.key[0]

    @property
    def fields(self) -> dict[str, Any]:
        """What Flax's layer was made with."""
        return self.setting.flax.fields.get(self.flax_path, {})

    @property
    def forward_departs(self) -> bool:
        """Whether numbers depart, and not only gradients or states."""
        return any(c.check.name.startswith(("forward", "what")) for c in self.departing)

    @property
    def same(self) -> float:
        """The error below which two arrays are the same one, computed twice."""
        return SAME[self.setting.dtype]

    @property
    def state_departs(self) -> bool:
        """Whether a state departs."""
        return any(c.check.name.startswith("state") for c in self.departing)

    @cached_property
    def functions(self) -> list[Function]:
        """What PyTorch's layer calls, outside of layers within it that both sides have."""
        seen: list[Function] = []

        def spy(function: Function) -> Any:
            seen.append(function)
            return function.again()

        self.torch_run(spy, differentiate=False)
        return seen

    def calls(self, *functions: Any) -> list[Function]:
        """Those of these functions that the layer calls."""
        return [f for f in self.functions if f.function in functions]

    def torch_run(self, rewrite: Rewrite, *, differentiate: bool) -> Run:
        """PyTorch's pass with functions of the layer rewritten."""
        side: Any = self.setting.torch
        steps = {step.torch.key for step in self.walk.steps}
        side.rewriting.append(Rewriting(side.open, steps, self.torch_path, rewrite))
        try:
            return one_side(
                self.setting, self.walk.mode, self.walk.given, 1, differentiate=differentiate
            )
        finally:
            side.rewriting.pop()

    def repaired(self, rewrite: Rewrite) -> float:
        """How many gates the worst of what departs is off, once PyTorch computes so.

        Infinite where it cannot.
        """
        with suppress(Exception):  # a hypothesis that does not fit the shapes is wrong
            worst = self._worst(self.torch_run(rewrite, differentiate=False))
            if worst > 1 or self._forward_only:
                return worst
            return self._worst(self.torch_run(rewrite, differentiate=True))
        return float("inf")

    @property
    def _forward_only(self) -> bool:
        return not any(c.check.name.startswith("gradient") for c in self.departing)

    def _worst(self, run: Run) -> float:
        wanted = {(c.step, c.arrival, c.check.name, c.check.subject) for c in self.departing}
        found = compare(self.setting, self.walk, (self.walk.runs[0], run))
        errors = [
            c.check.distance.error / c.check.gate
            for c in found
            if (c.step, c.arrival, c.check.name, c.check.subject) in wanted
        ]
        if not errors and not self.forward_departs:
            return 0.0  # only gradients depart, which this run has not
        return max(errors, default=float("inf"))

    @cached_property
    def before(self) -> float:
        """How many gates the worst of what departs is off."""
        return max(c.check.distance.error / c.check.gate for c in self.departing)


class Cause(ABC):
    """One reason for which two layers that should be the same are not.

    Attributes:
        name: as it is reported.
        mend: what to do about it.
    """

    name: str
    mend: str
    convention = False

    def about(self, case: Case) -> bool:
        """Whether it can be the cause of what departs: of outputs, unless it says otherwise."""
        return case.forward_departs

    @abstractmethod
    def hypotheses(self, case: Case) -> Iterable[Hypothesis]:
        """What Flax's layer may compute, likeliest first."""

    def find(self, case: Case) -> Iterator[Finding]:
        """The first hypothesis that repairs the layer, or the best one if it nearly does."""
        best: tuple[float, Hypothesis] | None = None
        for hypothesis in self.hypotheses(case):
            worst = case.repaired(hypothesis.rewrite)
            if worst <= 1:
                yield self.finding(case, hypothesis, worst, confirmed=True)
                return
            if best is None or worst < best[0]:
                best = (worst, hypothesis)
        if best is not None and best[0] < 0.01 * case.before:
            yield self.finding(case, best[1], best[0], confirmed=False)

    def finding(
        self, case: Case, hypothesis: Hypothesis, worst: float, *, confirmed: bool
    ) -> Finding:
        """A hypothesis as it is reported."""
        return Finding(
            hypothesis.name or self.name,
            confirmed,
            hypothesis.text,
            hypothesis.mend or self.mend,
            case.flax_path,
            case.torch_path,
            self.convention,
            worst * case.setting.gate,
        )


def only(functions: Sequence[Any], change: Callable[[Function], Any]) -> Rewrite:
    """A rewriting of these functions; all others are called as they are."""

    def rewrite(function: Function) -> Any:
        return change(function) if function.function in functions else function.again()

    return rewrite


def with_values(functions: Sequence[Any], **new: Any) -> Rewrite:
    """A rewriting that gives these functions other arguments."""
    return only(functions, lambda function: function.again(**new))
