"""What is asked of autograd while a converted model runs."""

import torch

from torchnorm.compat import hook_on_saved_tensors


def recomputing() -> bool:
    """Whether this is a checkpoint's second forward pass, within the backward pass.

    Without `use_reentrant` it has to save as many tensors as the first one did, though layers
    outside of the checkpoint do not run again: what they were told is told to a dummy then.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def means_something() -> bool:
    """Whether it is an error that a handle of this pass is never told.

    The second pass of a checkpoint without `use_reentrant` makes handles that nobody asks for.
    """
    return not recomputing() or hook_on_saved_tensors() is None


def segment() -> object | None:
    """Which checkpoint without `use_reentrant`, or other hook on what is saved, is active."""
    return None if torch.compiler.is_compiling() else hook_on_saved_tensors()


def dummy(u: torch.Tensor) -> torch.Tensor:
    """A handle of u that nobody asks for."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    return torch.zeros((), dtype=dtype, device=u.device, requires_grad=True).expand(u.shape)


def upstream(handle: torch.Tensor, u: torch.Tensor) -> bool:
    """Whether u was computed from the output of the layer that the handle came from."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True  # no graph to look at
    layer, start = handle.grad_fn, u.grad_fn
    while layer is not None and not isinstance(layer, torch.autograd.function.BackwardCFunction):
        layer = layer.next_functions[0][0]  # it was laid out anew
    if layer is None or start is None:
        return False
    oldest, seen, queue = layer._sequence_nr(), {start}, [start]
    for node in queue:
        if node is layer:
            return True
        for parent, _ in node.next_functions:
            # What is older than the layer cannot lead to it.
            if parent is not None and parent not in seen and parent._sequence_nr() >= oldest:
                seen.add(parent)
                queue.append(parent)
        if len(queue) > 10_000:
            break
    return False
