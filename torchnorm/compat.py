"""What older versions call or do otherwise: each entry says which version it is for."""

import contextlib
import sys
from collections.abc import Iterator

import torch


def hook_on_saved_tensors() -> object | None:
    """Which hook is active on what is saved for the backward pass: the same object for the same.

    torch < 2.8 does not tell: there every call may be in another.
    """
    autograd = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    if not hasattr(autograd, "_top_saved_tensors_default_hooks"):
        return object()
    hooks = autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else id(hooks[0])


def compiles_merging() -> bool:
    """Whether torch.compile can make a program of what merges statistics.

    In torch < 2.13 (seen in 2.11) Dynamo fails on the named tuples that it makes.
    """
    return torch.__version__ >= "2.13"


@contextlib.contextmanager
def with_data() -> Iterator[None]:
    """Tensors that are made in here have data, under FakeTensorMode and torch.device("meta") too.

    PyTorch has no public name for the first.
    """
    fake_tensor = sys.modules.get("torch._subclasses.fake_tensor")
    with contextlib.ExitStack() as stack:
        if fake_tensor is not None:
            stack.enter_context(fake_tensor.unset_fake_temporarily())
        stack.enter_context(torch.device("cpu"))
        yield
