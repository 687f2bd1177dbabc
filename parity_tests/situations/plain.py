"""The network of a case and its plain gradient: NumPy, reverse mode, written for the reader.

Every call of a layer leaves what its neurons read and the slope of the activation that follows, of
which the reference takes the moments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parity_tests import oracle
from parity_tests.oracle import Array
from parity_tests.situations.case import Block, Structure
from parity_tests.situations.roundings import Exact
from parity_tests.situations.values import Params

#: What is added to the variance of a normalizer.
NORMALIZER_EPSILON = 1e-3


class Node:
    """A value, and the gradient that has arrived at it."""

    def __init__(self, value: Array) -> None:
        self.value, self.grad = value, np.zeros_like(value)


class Pass:
    """One forward and backward pass.

    Args:
        structure: of the case.
        params: {layer: {"kernel": [*window, C, O], "bias": [O]}}.
        rounded: applied to every intermediate result; the identity, or random roundings.

    Attributes:
        grads: like params.
        loss: the sum of those whose gradients were taken.
        reads: {layer: [[x [N, I], slope [N, O], delta [N, O]] of each call]}.
    """

    def __init__(self, structure: Structure, params: Params, rounded: Exact) -> None:
        self.structure, self.params, self.rounded = structure, params, rounded
        self.grads = {a: {b: np.zeros_like(c) for b, c in d.items()} for a, d in params.items()}
        self.loss = 0.0
        self.reads: dict[str, list[list[Any]]] = {name: [] for name in params}
        self.pulls: list[Callable[[], None]] = []

    def gradient(self, x: Array, y: Array, masks: list[Array], weight: float, reached: Any) -> None:
        """Add that of ``weight sum over rows of |head - y|^2 / 2``, over the heads reached."""
        self.rounded.rewind()
        h, masks = Node(x), list(masks)
        for n, block in enumerate(self.structure.network.blocks):
            for _ in range(block.calls):
                h = self.block(f"block_{n}", block, h, masks)
        h = self.flat(h)
        for head in reached:
            out = self.layer(f"head_{head}", h, None)[0]
            error = out.value - y[:, head]
            self.loss += weight * np.sum(error**2) / 2
            out.grad += self.rounded(weight * error)
        for pull in reversed(self.pulls):
            pull()
        self.pulls = []

    def block(self, name: str, block: Block, h: Node, masks: list[Array]) -> Node:
        """See `Block`."""
        z, reads = self.layer(name, h, block)
        u = z
        if block.normalizer in ("layer", "batch"):
            u = self.normalized(z, over_rows=block.normalizer == "batch")
        if block.residual == "before":
            u = self.added(u, h)
        phi, slope = oracle.GATES[block.gate]
        reads[1] = slope(u.value).reshape(-1, block.width)
        a = self.elementwise(u, phi, slope)
        if block.normalizer == "after":
            a = self.normalized(a, over_rows=False)
        if block.dropout:
            a = self.times(a, masks.pop(0))
        return self.added(a, h) if block.residual == "after" else a

    def layer(self, name: str, h: Node, block: Block | None) -> tuple[Node, list[Any]]:
        """The linear part of a layer."""
        params, grads, rounded = self.params[name], self.grads[name], self.rounded
        kernel, inputs = params["kernel"], rounded(h.value)
        operation: Any = oracle.Dense()
        rank = len(self.structure.network.space)
        if block is not None and rank:
            pads = ((block.padding, block.padding),) * rank
            operation = oracle.Convolution(strides=block.stride, padding=pads)
        view = operation.view(inputs.shape, kernel.shape)
        x, w = view.patches(inputs)[:, 0], kernel.ravel()[view.kernel[:, 0]]
        z = x @ w + params.get("bias", 0.0)
        out = Node(rounded(z).reshape(view.z_shape))

        def pull() -> None:
            delta = reads[2] = out.grad.ravel()[view.z[:, 0]]
            terms = rounded(x[:, :, None] * delta[:, None, :])
            np.add.at(grads["kernel"].reshape(-1), view.kernel[:, 0], rounded.sum(terms))
            if "bias" in grads:
                grads["bias"] += rounded.sum(rounded(delta))
            back = np.zeros(inputs.size + 1)
            np.add.at(back, view.x[:, 0], delta @ w.T)
            h.grad += rounded(back[:-1]).reshape(inputs.shape)

        self.pulls.append(pull)
        slope = np.ones((len(x), w.shape[1]))
        reads = [view.patches(h.value)[:, 0], slope, 0 * slope]
        self.reads[name].append(reads)
        return out, reads

    def elementwise(self, u: Node, phi: Any, slope: Any) -> Node:
        """An activation."""
        out = Node(self.rounded(phi(u.value)))

        def pull() -> None:
            u.grad += self.rounded(out.grad * slope(u.value))

        self.pulls.append(pull)
        return out

    def times(self, a: Node, mask: Array) -> Node:
        """Dropout."""
        out = Node(a.value * mask)

        def pull() -> None:
            a.grad += out.grad * mask

        self.pulls.append(pull)
        return out

    def added(self, a: Node, b: Node) -> Node:
        """A residual sum."""
        out = Node(self.rounded(a.value + b.value))

        def pull() -> None:
            a.grad += out.grad
            b.grad += out.grad

        self.pulls.append(pull)
        return out

    def normalized(self, a: Node, *, over_rows: bool) -> Node:
        """(a - mean) / sqrt(variance + epsilon), over the features or over all rows."""
        axes = tuple(range(a.value.ndim - 1)) if over_rows else (-1,)
        deviation = a.value - a.value.mean(axes, keepdims=True)
        inverse = 1 / np.sqrt((deviation**2).mean(axes, keepdims=True) + NORMALIZER_EPSILON)
        normal = deviation * inverse
        out = Node(self.rounded(normal))

        def pull() -> None:
            g = out.grad
            centered = g - g.mean(axes, keepdims=True)
            a.grad += self.rounded(
                inverse * (centered - normal * (g * normal).mean(axes, keepdims=True))
            )

        self.pulls.append(pull)
        return out

    def flat(self, h: Node) -> Node:
        """What the heads read: [rows, features]."""
        out = Node(h.value.reshape(len(h.value), -1))

        def pull() -> None:
            h.grad += out.grad.reshape(h.value.shape)

        self.pulls.append(pull)
        return out
