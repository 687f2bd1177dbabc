"""Normalizations: epsilon, axes, groups, batch or running statistics, N or N - 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only, with_values
from parity_tests.port.functions import NORMALIZATIONS, SOFTMAX, SUMS
from parity_tests.port.running_variance import with_biased_variance

#: Values that are in use.
EPSILONS = (1e-5, 1e-6, 1e-3, 1e-12, 1e-8, 1e-7, 1e-4, 1e-2, 0.0, 1e-10, 1e-9)


class Epsilon(Cause):
    """The constant below the root is another: 1e-5 in PyTorch, 1e-6 in Flax's LayerNorm."""

    name = "epsilon"
    mend = "set epsilon= in Flax to PyTorch's eps"

    def hypotheses(self, case: Case) -> Iterable[Hypothesis]:
        """Flax's own epsilon, then those in use."""
        told = case.fields.get("epsilon")
        candidates = [told] if isinstance(told, float) else []
        candidates += [e for e in EPSILONS if e not in candidates]
        for call in case.calls(*NORMALIZATIONS)[:1]:
            eps = call.values.get("eps", 1e-5)
            for new in candidates:
                if new != eps:
                    text = f"PyTorch adds {eps!r} to the variance, Flax {new!r}"
                    yield Hypothesis(text, with_values(NORMALIZATIONS, eps=new))
        small = {
            float(f.values["other"])
            for f in case.calls(*SUMS)
            if isinstance(f.values.get("other"), float) and 0 < f.values["other"] < 0.05
        }
        for eps in small:
            for new in candidates:
                if new != eps:
                    text = f"PyTorch adds {eps!r}, Flax {new!r}"
                    yield Hypothesis(text, only(SUMS, _exchange(eps, new)))


def _exchange(old: float, new: float) -> Any:
    def change(function: Function) -> Any:
        if function.values.get("other") == old:
            return function.again(other=new)
        return function.again()

    return change


class BatchStatistics(Cause):
    """One side normalizes with the statistics of the batch, the other with the running ones."""

    name = "batch or running statistics"
    mend = "check use_running_average= in Flax and .train() or .eval() in PyTorch"

    def hypotheses(self, case: Case) -> Iterable[Hypothesis]:
        """The other ones."""
        for call in case.calls(F.batch_norm)[:1]:
            training = bool(call.values.get("training"))
            mine, other = ("the batch's", "the running")[:: 1 if training else -1]
            text = f"in {case.walk.mode} mode PyTorch normalizes with {mine} statistics, "
            text += f"Flax with {other}"

            def change(function: Function, training: bool = training) -> Any:
                copies = {
                    name: function.values[name].clone()
                    for name in ("running_mean", "running_var")
                    if function.values.get(name) is not None
                }
                return function.again(training=not training, **copies)

            yield Hypothesis(text, only((F.batch_norm,), change))
            if not training:  # and they are updated, as a departure of states shows

                def update(function: Function) -> Any:
                    return with_biased_variance(function, training=True)

                yield Hypothesis(text, only((F.batch_norm,), update))


class UnbiasedVariance(Cause):
    """The variance within the normalization is divided by N - 1 on one side, by N on the other."""

    name = "unbiased variance"
    mend = "divide by the same count: jnp.var and jnp.std have ddof=0, torch.var and torch.std 1"

    _spreads = (torch.std, torch.var, Tensor.std, Tensor.var)

    def hypotheses(self, case: Case) -> Iterable[Hypothesis]:
        """The other count."""
        for call in case.calls(*self._spreads)[:1]:
            biased = call.kwargs.get("unbiased") is False or call.kwargs.get("correction") == 0
            mine, other = ("N", "N - 1") if biased else ("N - 1", "N")

            def change(function: Function, biased: bool = biased) -> Any:
                kwargs = {k: v for k, v in function.kwargs.items() if k != "unbiased"}
                args = tuple(a for a in function.args if not isinstance(a, bool))
                return function.function(*args, **{**kwargs, "correction": int(biased)})

            text = f"PyTorch divides the variance by {mine}, Flax by {other}"
            yield Hypothesis(text, only(self._spreads, change))
        for call in case.calls(F.batch_norm, F.layer_norm)[:1]:
            text = "PyTorch divides the variance by N, Flax by N - 1"
            yield Hypothesis(text, only((F.batch_norm, F.layer_norm), _unbiased))
            del call


def _unbiased(function: Function) -> Any:
    values, x = function.values, function.values["input"]
    if function.function is F.layer_norm:
        axes = tuple(range(x.ndim - len(values["normalized_shape"]), x.ndim))
    elif values.get("training"):
        axes = tuple(n for n in range(x.ndim) if n != 1)
    else:
        return function.again()
    return _normalized(function, axes, correction=1)


def _normalized(function: Function, axes: tuple[int, ...], correction: int = 0) -> Any:
    """The normalization over these axes, by formula."""
    values, x = function.values, function.values["input"]
    mean = x.mean(axes, keepdim=True)
    variance = x.var(axes, keepdim=True, correction=correction)
    y = (x - mean) / torch.sqrt(variance + values.get("eps", 1e-5))
    channel = 1 if function.function is not F.layer_norm else -1
    shape = [1] * x.ndim
    shape[channel] = x.shape[channel]
    for name, combine in (("weight", torch.mul), ("bias", torch.add)):
        array = values.get(name)
        if array is not None:
            y = combine(y, array.reshape(shape) if array.ndim == 1 else array)
    return y


class Axis(Cause):
    """A normalization or a softmax is taken over another axis."""

    name = "normalization axis"
    mend = "give Flax the axis that PyTorch has: channels are last there (axis=-1)"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """All other axes."""
        for call in case.calls(F.layer_norm, F.group_norm, F.instance_norm, F.batch_norm)[:1]:
            rank = call.values["input"].ndim
            for count in range(1, rank + 1):
                for axes in combinations(range(rank), count):

                    def change(function: Function, axes: tuple[int, ...] = axes) -> Any:
                        return _normalized(function, axes)

                    text = f"Flax normalizes over the axes {list(axes)} of PyTorch's input"
                    yield Hypothesis(text, only((call.function,), change))
        for call in case.calls(*SOFTMAX)[:1]:
            dim = call.values.get("dim", -1)
            rank = call.values["input"].ndim
            for new in range(rank):
                if new != dim % rank:
                    text = f"PyTorch's softmax is over axis {dim % rank}, Flax's over {new}"
                    yield Hypothesis(text, with_values(SOFTMAX, dim=new))


class Groups(Cause):
    """GroupNorm has another number of groups."""

    name = "number of groups"
    mend = "set num_groups= (32 by default in Flax) or group_size="

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """All divisors of the channels."""
        for call in case.calls(F.group_norm)[:1]:
            channels, groups = call.values["input"].shape[1], call.values["num_groups"]
            for new in range(1, channels + 1):
                if channels % new == 0 and new != groups:
                    text = f"PyTorch has {groups} groups, Flax {new}"
                    yield Hypothesis(text, with_values((F.group_norm,), num_groups=new))


def near(a: float, b: float) -> bool:
    """Whether two knobs are the same number."""
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
