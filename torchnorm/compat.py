"""What older versions call or do otherwise: each entry says which version it is for."""

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
