"""What is right: the network with other parameters, in which the plain optimizer works. NumPy.

Per neuron ``w = w~ / sigma`` and ``b = b~ - sum mean w``, so by the chain rule the loss has the
gradients ``g_w~ = (g_w - mean g_b) / sigma`` and ``g_b~ = g_b``. The coordinates are of what
learns: a weight that does not is no part of the sum, and a bias that does not leaves no sum to
make, so that the moments are those about zero. Weight decay is the plain optimizer's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from parity_tests.oracle import Array
from parity_tests.situations.case import Case
from parity_tests.situations.plain import Pass
from parity_tests.situations.roundings import Exact
from parity_tests.situations.steppers import RULES
from parity_tests.situations.values import Batch, Params, Values

SHRINKAGE, DAMPING = 8.0, 0.1
#: In units of the standard deviation: from here on a sum about another place has lost digits; and
#: fewer samples do not tell where their own is. From batch to batch a mean may move as far as that.
FAR, FEW = 10.0, 8
MOVED = {"float64": 300.0, "float32": 30.0}
#: In units of a rounding: less is as good as constant, or is not.
BLUR = 200.0


class Samples(NamedTuple):
    """What the neurons of a layer have read in one step.

    Attributes:
        x: [N, I].
        s: how much each sample counts for each neuron, [N, O].
    """

    x: Array
    s: Array


class Moments(NamedTuple):
    """Of what each neuron reads, [I, O]; about zero where there is no bias that learns."""

    mean: Array
    sigma: Array
    varies: Array


def moments(parts: list[tuple[float, Samples]], centered: Array, rule: str) -> Moments:
    """Those of weighted samples, two passes; centered: [O], rule: what it is called."""
    x = np.concatenate([part.x for _, part in parts])
    u = np.concatenate([np.full(len(part.x), weight) for weight, part in parts])
    s = np.concatenate([weight * part.s for weight, part in parts])
    layer = u @ x / u.sum()
    layer = layer + u @ (x - layer) / u.sum()
    deviation = x - layer
    spread = (u @ deviation**2 / u.sum())[:, None]
    mass, square = s.sum(0), (s**2).sum(0)
    trust = mass**2 / np.where(mass > 0, mass**2 + SHRINKAGE * square, 1)
    share = s / np.where(mass > 0, mass, 1)
    step = deviation.T @ share
    within = np.stack(
        [share[:, o] @ (deviation - step[:, o]) ** 2 for o in range(s.shape[1])], axis=1
    )
    mean = layer[:, None] + trust * step
    variance = trust * within + (1 - trust) * spread + trust * (1 - trust) * step**2
    about_zero = variance + mean**2
    if rule == "layer":
        variance = np.broadcast_to(spread, variance.shape)
        about_zero = variance + layer[:, None] ** 2
    varies = (np.ptp(x, axis=0) > 0)[:, None]
    sigma = sigma_of(variance, varies[:, 0], rule)
    other = sigma_of(about_zero, np.any(x != 0, axis=0), rule)
    mean, sigma = np.where(centered, mean, 0.0), np.where(centered, sigma, other)
    return Moments(mean, sigma, varies | np.logical_not(centered))


def sigma_of(variance: Array, counts: Array, rule: str) -> Array:
    """[I, O], damped; unless standardized over its root mean square among the inputs that count."""
    damped = variance + DAMPING * variance.mean(0)
    sigma = np.where(damped > 0, np.sqrt(damped), 1.0)
    absolute = rule == "standardized" or not counts.any()
    return sigma if absolute else sigma / np.sqrt(np.mean(damped[counts], axis=0))


class Reference:
    """A training run.

    Args:
        case: see `Case`.
        values: its arrays.
        framework: "jax" or "torch": what has no gradient at all is treated differently.
        rounded: applied to every intermediate result.

    Attributes:
        params: after the last step.
        moved: like params, which entries have made a step other than weight decay.
        still: of each step, the layers that make none, because nothing is known of their samples.
        far: of each step, those whose samples lie far from where sums can be taken.
        blurred: whether some input varies by little more than the roundings of its values.
    """

    def __init__(self, case: Case, values: Values, framework: str, rounded: Exact) -> None:
        self.case, self.values, self.framework, self.rounded = case, values, framework, rounded
        self.still: list[set[str]] = []
        self.far: list[set[str]] = []
        self.blurred = False
        self.params: Params = {
            a: {b: c.astype(np.float64) for b, c in d.items()} for a, d in values.params.items()
        }
        self.moved = {a: {b: c != c for b, c in d.items()} for a, d in self.params.items()}
        self.memory: dict[tuple[str, str], Any] = {}
        self.samples: dict[str, list[Samples]] = {layer: [] for layer in self.params}

    def run(self) -> list[Params]:
        """The parameters after every step."""
        found = []
        for step, batch in enumerate(self.values.batches):
            self.step(step, batch)
            found.append({a: dict(d) for a, d in self.params.items()})
        return found

    def step(self, step: int, batch: Batch) -> None:
        """One step."""
        grads, reads = self.plain(step, batch)
        self.far.append(set())
        for layer, calls in reads.items():
            count = sum(len(x) for x, *_ in calls)
            alone = count == 1 and self.case.decay == 0 and "bias" in self.params[layer]
            if calls and not alone:  # a single sample is its own mean
                if self.is_far(step, layer, calls):
                    self.far[-1].add(layer)
                self.remember(layer, *(np.concatenate(each) for each in zip(*calls, strict=True)))
        self.still.append({layer for layer in grads if not self.samples[layer]})
        present = {layer: self.present(layer, bool(reads[layer])) for layer in grads}
        at, inside = {}, {}
        for layer, plain in grads.items():
            flat = {name: g.reshape(-1, g.shape[-1]) for name, g in plain.items()}
            at[layer], inside[layer] = self.into(layer, flat, present[layer])
        if self.case.structure.wrapping.clip == "inside":
            inside = self.clipped(inside)
        for layer in grads:
            self.out_of(step, layer, at[layer], inside[layer])

    def plain(self, step: int, batch: Batch) -> tuple[Params, dict[str, list[Any]]]:
        """The plain gradient as the optimizer gets it, and what the layers have read."""
        wrapping, network = self.case.structure.wrapping.at(step), self.case.structure.network
        outside = wrapping.batches in ("whole", "vmap", "rows")
        run = Pass(self.case.structure, self.params, self.rounded)
        for part in batch.parts(wrapping.parts):
            rows = len(batch.x) if outside or wrapping.average else len(part.x)
            x, y, masks = (_wide(a) for a in part)
            run.gradient(x, y, masks, 1 / rows, network.reached[step])
        frozen = self.case.structure.frozen
        grads = run.grads
        if frozen is not None and frozen.by in ("gradient", "stopped"):
            learning = self.values.learning
            grads = {a: {b: c * learning[a][b] for b, c in d.items()} for a, d in grads.items()}
        if wrapping.clip == "norm":
            grads = self.clipped(grads)
        if wrapping.clip == "value":
            limit = self.case.limit
            grads = {
                a: {b: np.clip(c, -limit, limit) for b, c in d.items()} for a, d in grads.items()
            }
        return grads, run.reads

    def is_far(self, step: int, layer: str, calls: list[Any]) -> bool:
        """Whether a layer's samples lie far from where a package can take their sums.

        That is the mean of the batch before; of the first, its own mean, or 0 where it comes in
        parts, each of which has its own.
        """
        history, each = self.samples[layer], [x for x, *_ in calls]
        whole, limit = np.concatenate(each), FAR
        varies, places, center = np.ptp(whole, axis=0) > 0, [whole], np.zeros(whole.shape[1])
        if history:
            center, limit = history[-1].x.mean(0), MOVED[self.case.structure.dtype]
            # A constant that was another before; one of 0 has no gradient anyway.
            off = np.abs(whole[0] - center) > 1e-12 * np.abs(whole[0])
            varies |= off & (whole[0] != 0)
        elif len(calls) == self.case.structure.wrapping.at(step).parts == 1 and len(whole) >= FEW:
            return False
        else:  # a part of few samples is summed about 0, whatever its mean
            places += [x for x in each if len(x) >= FEW]
        gaps = [np.abs(x.mean(0) - center) > limit * x.std(0) for x in places]
        return bool(np.any(np.any(gaps, axis=0) & varies))

    def remember(self, layer: str, x: Array, slope: Array, delta: Array) -> None:
        """The samples of a step."""
        rule = self.case.structure.rule
        s = {"uniform": np.ones_like(slope), "error": delta**2}.get(rule, np.abs(slope))
        blur = BLUR * np.finfo(self.case.structure.dtype).eps * np.abs(x).max(0)
        self.blurred |= bool(np.any((np.ptp(x, axis=0) > 0) & (x.std(0) < blur)))
        self.samples[layer].append(Samples(self.rounded(x), self.rounded(s)))

    def present(self, layer: str, reached: bool) -> set[str]:
        """Which of the layer's parameters the optimizer touches in this step."""
        if self.framework == "torch" and not reached:
            if self.case.structure.network.idle == "skipped":
                return set()
        frozen, names = self.case.structure.frozen, set(self.params[layer])
        if frozen is None or frozen.layer != layer or frozen.by == "gradient":
            return names
        if frozen.by == "stopped" and self.framework == "jax":
            return names  # zeros are a gradient
        return names - (names if frozen.what == "layer" else {frozen.what})

    def into(
        self, layer: str, grads: dict[str, Array], present: set[str]
    ) -> tuple[Moments | None, dict[str, Array]]:
        """(The coordinates, the gradient in them) of one layer; of what is present."""
        inside = {name: g for name, g in grads.items() if name in present}
        history = self.samples[layer]
        if "kernel" not in present:
            return None, inside
        if not history:  # nothing is known of what the layer reads: no step
            return None, {name: 0 * g for name, g in inside.items()}
        g_w = grads["kernel"]
        g_b = inside.get("bias")
        learns = np.zeros(g_w.shape[1], bool)
        if g_b is not None:
            learns = (g_b[0] != 0) | ~np.any(g_w != 0, axis=0)
            learns &= self.values.learning[layer]["bias"] != 0
        decay = self.case.decay
        ages = range(len(history) - 1, -1, -1)
        parts = [(decay**age, part) for age, part in zip(ages, history, strict=True)]
        rule = self.case.structure.rule
        at = moments([part for part in parts if part[0] > 0], learns, rule)
        at = Moments(self.rounded(at.mean), self.rounded(at.sigma), at.varies)
        moved = g_w if g_b is None else self.rounded(g_w - self.rounded(at.mean * g_b))
        moved = np.where((g_w != 0) & at.varies, moved, 0.0)
        inside["kernel"] = self.rounded(moved / at.sigma)
        return at, inside

    def out_of(self, step: int, layer: str, at: Moments | None, inside: dict[str, Array]) -> None:
        """The plain optimizer's step, taken out of the coordinates."""
        case, steps, decayed = self.case, {}, {}
        for name, gradient in inside.items():
            group = case.group_of(layer, name)
            rate = case.rates[group] * case.schedule[step]
            direction, memory = RULES[case.structure.optimizer](
                gradient, self.memory.get((layer, name))
            )
            self.memory[layer, name] = memory
            steps[name] = -rate * self.rounded(direction)
            decayed[name] = rate * case.weight_decays[group]
        if at is not None:
            steps["kernel"] = self.rounded(steps["kernel"] / at.sigma)
            if "bias" in steps:
                moved = self.rounded(at.mean * steps["kernel"])
                steps["bias"] = self.rounded(steps["bias"] - moved.sum(0))
        for name, change in steps.items():
            old = self.params[layer][name]
            self.moved[layer][name] |= change.reshape(old.shape) != 0
            new = old + change.reshape(old.shape) - decayed[name] * old
            self.params[layer][name] = np.where(new == old, old, self.rounded(new))

    def clipped(self, grads: Params) -> Params:
        """Scaled down to a norm of at most the limit, all together."""
        limit = self.case.limit
        norm = np.sqrt(sum(np.sum(g**2) for layer in grads.values() for g in layer.values()))
        # PyTorch divides by a little more.
        over = norm + 1e-6 if self.framework == "torch" else norm
        factor = limit / over if over > limit else 1.0
        return {a: {b: factor * c for b, c in d.items()} for a, d in grads.items()}


def _wide(a: Any) -> Any:
    """In float64."""
    return [_wide(each) for each in a] if isinstance(a, list) else a.astype(np.float64)
