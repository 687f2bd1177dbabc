"""Running statistics: the momentum, and which variance is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch.nn.functional as F

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.causes.normalization import near
from parity_tests.port.measure import distance
from parity_tests.port.report import Finding
from parity_tests.port.running_variance import BiasedVariance, with_biased_variance


class RunningVariance(Cause):
    """PyTorch keeps the unbiased running variance, Flax the biased one; neither is wrong."""

    name = "unbiased running variance"
    mend = "nothing, or multiply var by N / (N - 1) when it is converted: the more, the smaller N"
    convention = True

    def about(self, case: Case) -> bool:
        """Of states alone."""
        return case.state_departs and not case.forward_departs

    def hypotheses(self, case: Case) -> Iterable[Hypothesis]:
        """The biased one."""
        if case.calls(F.batch_norm):
            yield Hypothesis(BiasedVariance.text, only((F.batch_norm,), _biased))


class Momentum(Cause):
    """Flax's momentum is the weight of the old value, PyTorch's that of the new."""

    name = "momentum"
    mend = "momentum in Flax = 1 - momentum in PyTorch (0.99 and 0.1 by default)"

    def about(self, case: Case) -> bool:
        """Of states alone."""
        return case.state_departs and not case.forward_departs

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Flax's own, or the one that its numbers show."""
        for call in case.calls(F.batch_norm)[:1]:
            mine = call.values.get("momentum", 0.1)
            told = case.fields.get("momentum")
            decays = [told] if isinstance(told, (int, float)) else []
            decays += _decays(case, mine)
            for decay in decays:
                inverted = near(decay, mine) and not near(decay, 1 - mine)
                text = (
                    f"PyTorch takes {mine:g} of the new value, Flax {1 - decay:.6g} "
                    f"(its momentum is the weight of the old one, {decay:.6g})"
                )
                name = "momentum inverted" if inverted else self.name

                for biased in (True, False):

                    def change(
                        function: Function, decay: float = decay, biased: bool = biased
                    ) -> Any:
                        run = with_biased_variance if biased else Function.again
                        return run(function, momentum=1 - decay)

                    yield Hypothesis(text, only((F.batch_norm,), change), name)

    def find(self, case: Case) -> Iterator[Finding]:
        """By rewriting; of a layer that keeps its statistics itself, by numbers."""
        found = list(super().find(case))
        yield from found
        mine = case.setting.torch.fields.get(case.torch_path, {}).get("momentum")
        if found or not isinstance(mine, float):
            return
        decays = _decays(case, mine)
        if decays and all(near(decay, decays[0]) for decay in decays) and _explains(case, mine):
            inverted = near(decays[0], mine) and not near(decays[0], 1 - mine)
            text = (
                f"PyTorch takes {mine:g} of the new value, Flax {1 - decays[0]:.6g}, as the "
                "numbers of both show"
            )
            name = "momentum inverted" if inverted else self.name
            yield Finding(name, True, text, self.mend, case.flax_path, case.torch_path)


def _biased(function: Function) -> Any:
    return with_biased_variance(function)


def _decays(case: Case, momentum: float) -> list[float]:
    """The weight of the old value in Flax, from what both kept of the same batch."""
    found = []
    for ours, before, batch in _kept(case, momentum):
        spread = float(np.sum((before - batch) ** 2))
        if spread:
            found.append(round(float(np.sum((ours - batch) * (before - batch))) / spread, 9))
    return list(dict.fromkeys(found))


def _explains(case: Case, momentum: float) -> bool:
    """Whether that weight gives all of Flax's numbers."""
    (decay, *_), found = _decays(case, momentum), _kept(case, momentum)
    return all(
        distance(batch + decay * (before - batch), ours).error < 1e-6
        for ours, before, batch in found
    )


def _kept(case: Case, momentum: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(what Flax keeps, what both had, the batch's) of all statistics that depart."""
    for link in case.setting.pairing.links:
        if not link.state or not momentum:
            continue
        if link.flax not in {c.check.subject for c in case.departing}:
            continue
        before = link.to_flax(case.setting.states[1])
        theirs = link.to_flax(case.walk.runs[1].states)
        batch = (theirs - (1 - momentum) * before) / momentum
        yield case.walk.runs[0].states[link.flax], before, batch
