"""What a planted fault is, and the pair that has it."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

_numbers = itertools.count()


@dataclass(frozen=True)
class Fault:
    """One mistake in one side of a correct pair, as a person makes it: in the text.

    Attributes:
        name: what it is.
        pair: which pair has it.
        side: "flax" or "torch".
        edits: (old text, new text); each old text must occur exactly once in the side's half of
            the pair's module: PyTorch's begins with the first class of an `nn.Module`.
        layer: the path of the layer that departs first, in Flax and in PyTorch.
        cause: the name of the cause that must be given; None where only the layer must be right.
        added: text that is added at the end of the module.
        configuration: knobs that differ from the pair's own.
        strict: whether a convention of the frameworks is to count as a departure.
    """

    name: str
    pair: str
    side: str
    edits: tuple[tuple[str, str], ...]
    layer: tuple[str, str]
    cause: str | None
    added: str = ""
    configuration: dict[str, Any] = field(default_factory=dict)
    strict: bool = False

    def module(self) -> ModuleType:
        """The pair's module with the fault in it.

        Raises:
            ValueError: where an old text does not occur exactly once.
        """
        correct = import_module(f"parity_tests.port.pairs.{self.pair}")
        source = inspect.getsource(correct)
        flax, torch_class, rest = re.split(
            r"(^class \w+\(nn\.)", source, maxsplit=1, flags=re.MULTILINE
        )
        halves = {"flax": flax, "torch": torch_class + rest}
        for old, new in self.edits:
            if (found := halves[self.side].count(old)) != 1:
                raise ValueError(
                    f"fault {self.name!r}: got {found} times {old!r} in {self.pair}, expected once"
                )
            halves[self.side] = halves[self.side].replace(old, new)
        text = halves["flax"] + halves["torch"] + "\n\n" + self.added
        module = ModuleType(f"{correct.__name__}_{next(_numbers)}")
        module.__file__ = f"<{self.pair} with {self.name}>"
        sys.modules[module.__name__] = module  # dataclasses look their module up by its name
        exec(compile(text, module.__file__, "exec"), module.__dict__)
        return module

    @property
    def knobs(self) -> dict[str, Any]:
        """The configuration of the pair with it."""
        correct = import_module(f"parity_tests.port.pairs.{self.pair}")
        return {**correct.CONFIGURATION, **self.configuration}
