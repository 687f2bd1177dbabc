"""A gradient that is stopped on one side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.functions import CONCATENATE, SUMS
from parity_tests.port.report import Finding


class GradientStopped(Cause):
    """`jax.lax.stop_gradient` or `detach` on one side only: forward agrees, a gradient is zero."""

    name = "gradient stopped"
    mend = "jax.lax.stop_gradient(x) in Flax is x.detach() in PyTorch"

    def about(self, case: Case) -> bool:
        """Of gradients alone."""
        return not case.forward_departs and not case.state_departs

    def hypotheses(self, case: Case) -> Iterable[Hypothesis]:
        """Without PyTorch's detach."""
        if case.calls(Tensor.detach):
            text = "PyTorch stops a gradient (detach), Flax does not"
            yield Hypothesis(text, only((Tensor.detach,), lambda f: f.args[0]))
        for call in case.calls(*CONCATENATE)[:1]:
            for place in range(len(call.values["tensors"])):

                def cut(function: Function, place: int = place) -> Any:
                    tensors = list(function.values["tensors"])
                    if place < len(tensors):
                        tensors[place] = tensors[place].detach()
                    return function.again(tensors=tensors)

                text = f"Flax stops the gradient of part {place} of what is put together"
                yield Hypothesis(text, only(CONCATENATE, cut))
        for place, which in enumerate(("first", "second")):
            if case.calls(*SUMS):

                def halt(function: Function, place: int = place) -> Any:
                    args = [
                        a.detach() if n == place and isinstance(a, Tensor) else a
                        for n, a in enumerate(function.args)
                    ]
                    return function.function(*args, **function.kwargs)

                text = f"Flax stops the gradient of the {which} of two that are added"
                yield Hypothesis(text, only(SUMS, halt))

    def find(self, case: Case) -> Iterator[Finding]:
        """By rewriting, or a gradient that is zero in Flax and nowhere else."""
        found = list(super().find(case))
        yield from found
        if found:
            return
        for each in case.departing:
            check = each.check
            if not check.name.startswith("gradient"):
                continue
            torch_is_reference = case.setting.reference == "torch"
            flax = check.distance.other if torch_is_reference else check.distance.reference
            if flax == 0 and np.isclose(check.distance.error, 1.0, atol=1e-6):
                text = f"the gradient {check.subject} is zero in Flax: it stops it"
                yield Finding(self.name, True, text, self.mend, case.flax_path, case.torch_path)
                return
