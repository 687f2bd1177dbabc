"""What torch.compile is to leave as it is: bookkeeping, of which it would make a graph a line."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._dynamo import decorators

_Function = TypeVar("_Function", bound=Callable[..., Any])


def uncompiled(function: _Function) -> _Function:
    """A function that is left as it is, with all that it calls."""
    disabled: Any = torch.compiler.disable(function)
    return disabled


def uncompiled_alone(function: _Function) -> _Function:
    """A function that is left as it is, but not what it calls."""
    # (Behind torch.compiler.disable(recursive=False) PyTorch looks at each call anew, for a ms.)
    skipped: Any = decorators.skip(function)
    return skipped
