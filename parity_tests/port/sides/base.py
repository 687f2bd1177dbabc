"""What the comparison asks of a model, whichever framework it is written in.

A `Side` is a pure function on NumPy arrays: parameters and states go in, outputs, gradients, new
states and what every submodule read and returned come out. The user's model is copied or only read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
#: The call of a submodule: its path, and the number of the call.
Key = tuple[str, int]


@dataclass
class Call:
    """What a submodule read and returned.

    Attributes:
        key: path and number of the call.
        kind: the name of its class.
        arguments: the arrays among its arguments, by their place among all leaves of these.
        results: the arrays that it returned, likewise.
        began: when, on a clock of all beginnings and ends.
        ended: likewise.
        parent: the call within which it is made.
        read: identities of the arrays that it reads, while a pass lasts.
        returned: likewise.
    """

    key: Key
    kind: str
    arguments: dict[int, np.ndarray] = field(default_factory=dict)
    results: dict[int, np.ndarray] = field(default_factory=dict)
    began: int = -1
    ended: int = -1
    parent: Key | None = None
    read: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A dropout that was at work in a run: where, and the share that it drops."""

    path: str
    rate: float


@dataclass
class Given:
    """What a call is made to read and to return, and the cotangents of what it computes.

    With these in place of what it would read, a layer answers for itself alone, and with its answer
    replaced by the reference's the next one does.
    """

    arguments: dict[int, np.ndarray] = field(default_factory=dict)
    results: dict[int, np.ndarray] = field(default_factory=dict)
    argument_cotangents: dict[int, np.ndarray] = field(default_factory=dict)
    result_cotangents: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass
class Run:
    """What came out of one pass.

    Attributes:
        outputs: what the model returned, flat: (name, array).
        named: whether its outputs have names, and not only places.
        states: all states after the pass.
        calls: the submodules' calls, in the order of their beginnings.
        parameter_gradients: by name; empty without cotangents.
        input_gradients: of the float inputs, by name; empty without cotangents.
        given_gradients: of what was given to calls (`Given`), likewise.
        dropped: every dropout that was at work.
    """

    outputs: list[tuple[str, np.ndarray]]
    named: bool
    states: Arrays
    calls: list[Call]
    parameter_gradients: Arrays = field(default_factory=dict)
    input_gradients: Arrays = field(default_factory=dict)
    given_gradients: dict[Key, Given] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def order(self) -> list[str]:
        """Paths of the modules in the order in which they are called."""
        return list(dict.fromkeys(call.key[0] for call in self.calls))

    @property
    def wires(self) -> dict[str, set[str]]:
        """Path of a module -> paths of those whose results it reads as they are."""
        makers: dict[int, set[str]] = {}
        for call in self.calls:
            for array in call.returned:
                makers.setdefault(array, set()).add(call.key[0])
        found: dict[str, set[str]] = {}
        for call in self.calls:
            for array in call.read:
                found.setdefault(call.key[0], set()).update(makers.get(array, ()))
        return found


@dataclass(frozen=True)
class Inputs:
    """Positional and named inputs of a model; arrays are NumPy's, anything else goes as it is."""

    positional: tuple[Any, ...] = ()
    keyword: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """Some steps of an optimizer.

    Attributes:
        optimizer: "SGD" or "Adam".
        rate: the learning rate.
        epsilon: of Adam, added to the root.
        steps: how many.
        fixed: (name, rows) of parameters of PyTorch that are not trained; rows None: all.
    """

    optimizer: str
    rate: float
    epsilon: float
    steps: int
    fixed: tuple[tuple[str, tuple[int, int] | None], ...] = ()


class Side(ABC):
    """One of the two models.

    Attributes:
        framework: "PyTorch", "linen" or "nnx".
        parameters: what is trained, by name, in the layout of the framework.
        states: what a pass in train mode may change, likewise.
        frozen: names of parameters of PyTorch without ``requires_grad``.
        kinds: path of a submodule -> the name of its class, as far as it is known.
        fields: path of a submodule -> what it was made with, as far as it is known.
        modes: whether train and eval mode can differ.
    """

    framework: str
    parameters: Arrays
    states: Arrays
    frozen: frozenset[str] = frozenset()
    kinds: dict[str, str]
    fields: dict[str, dict[str, Any]]
    modes: bool

    @abstractmethod
    def run(
        self,
        parameters: Arrays,
        states: Arrays,
        inputs: Inputs,
        *,
        train: bool,
        dropout: bool = False,
        cotangents: Sequence[np.ndarray] | None = None,
        given: Mapping[Key, Given] | None = None,
    ) -> Run:
        """One pass, and its gradients if there are cotangents.

        Args:
            parameters: by name.
            states: by name.
            inputs: what the model reads.
            train: the mode.
            dropout: whether dropout draws; otherwise it is left out wherever it stands.
            cotangents: one for each float output, in order; None: no gradients.
            given: what calls are made to read and return. Then gradients are those of the sum of
                <cotangent, what the call computes> over them, too.
        """

    @abstractmethod
    def train(
        self,
        parameters: Arrays,
        states: Arrays,
        inputs: Inputs,
        cotangents: Sequence[np.ndarray],
        training: Training,
    ) -> list[Arrays]:
        """The parameters after each step of the framework's optimizer on <cotangents, outputs>."""


def is_float(array: Any) -> bool:
    """Whether an array of NumPy can have a gradient (bfloat16 is a float, too)."""
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name in ("bfloat16", "float16")
