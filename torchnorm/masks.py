"""Which samples count: the mask of a batch whose padding is to stay out of the statistics."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch

from torchnorm import checks

#: The masks in effect in this thread (`masks`, the last one counts). Not a ContextVar, which
#: torch.compile does not trace.
_here = threading.local()
#: Under this name autograd's threads find the masks of the thread that called `backward()`.
_NAME = "torchnorm.masks"


@contextlib.contextmanager
def neuron_mask(mask: Any) -> Iterator[None]:
    """Inside, the layers' statistics leave out the samples that the mask does not count.

    Padding that the loss does not count has no part in the gradient, but it would have one in the
    input moments of every neuron. With a mask they are those of the batch without these rows,
    counts of samples included. Forward pass and default gradients stay what they are.

    Each layer takes of the mask what it has of its axes: a layer whose samples are [batch, time]
    uses a mask [batch, time] as it is, one whose samples are the two as one axis uses it so too; of
    axes that the layer does not have, or has at another length (a pooled output, an image behind a
    stride), the largest weight counts, so that an example counts if any of it does. A layer without
    the first axis of the mask is an error. Weights of several parts (experts), whose rows a router
    has put anywhere, leave out the rows to which no gradient comes back; they take zeros and ones.

    Args:
        mask: booleans, or weights >= 0: one of 2 counts as if the sample were there twice (so their
            unit matters, as the number of samples does). The first axes are those of the model's
            batch. None: all samples count.

    Raises:
        TypeError: for a mask that is not real.
        ValueError: in a layer whose samples have not the mask's first axis; for other weights than
            zeros and ones in one of experts.

    Transformations: autograd, torch.compile, torch.func (map the mask with the batch). It is read
    in the forward pass; with checkpointing, which runs that again in the backward pass, call
    ``backward()`` inside too. It is that of one thread: models in other threads do not see it, but
    the threads in which autograd runs a device's backward pass do, of ``backward()`` in this one.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.Sequential(
        ...     torchnorm.Linear(3, 4, gate="relu"), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> optimizer = torchnorm.optim.in_neuron_coordinates(optimizer, model)
        >>> tokens, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
        >>> mask = torch.arange(5) < lengths[:, None]
        >>> with torchnorm.neuron_mask(mask):
        ...     z = model(tokens)
        >>> (z[..., 0] * mask).sum().backward()
        >>> model[0].neuron_stats.gathered().samples.item()
        7.0
    """
    if mask is not None:
        mask = _checked(mask)
    masks = getattr(_here, "masks", None)
    if masks is None:
        masks = _here.masks = []
    if not (torch.compiler.is_compiling() or torch._C._is_key_in_tls(_NAME)):
        torch._C._stash_obj_in_tls(_NAME, masks)
    masks.append(mask)
    try:
        yield
    finally:
        masks.pop()


def current_mask() -> torch.Tensor | None:
    """The mask in effect, or None."""
    masks = getattr(_here, "masks", None)
    if not masks and not torch.compiler.is_compiling() and torch._C._is_key_in_tls(_NAME):
        masks = torch._C._get_obj_in_tls(_NAME)
    return masks[-1] if masks else None


def of_ones(mask: torch.Tensor | None) -> bool:
    """Whether there is a mask that counts or does not; a ValueError for one of other weights."""
    if mask is not None and mask.dtype != torch.bool:
        checks.check_counts(ones=bool(((mask == 0) | (mask == 1)).all()))
    return mask is not None


def _checked(mask: Any) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor):  # else it would move to the default device
        mask = torch.as_tensor(mask)
    mask = mask.detach()
    checks.check_neuron_mask(checks.dtype_name(mask), real=not mask.is_complex())
    return mask


def fitted(mask: Any, samples: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """How often each of the samples counts, with their axes, and the device and type of `like`."""
    mask = _checked(mask)
    given = tuple(mask.shape)
    if samples and given and given[0] != samples[0]:
        for joined in range(2, len(given) + 1):
            if math.prod(given[:joined]) == samples[0]:
                mask = mask.reshape(samples[0], *given[joined:])
                break
    shared = 0
    for a, b in zip(mask.shape, samples, strict=False):
        if a != b:
            break
        shared += 1
    checks.check_fits(given, samples, fits=shared > 0 or not given)
    mask = mask.to(like.device, torch.promote_types(like.dtype, torch.float32))
    rest = list(range(shared, mask.ndim))
    if rest:
        mask = mask.amax(rest) if mask.numel() else mask.new_zeros(mask.shape[:shared])
    return mask.reshape(*mask.shape, *[1] * (len(samples) - shared)).expand(samples)
