"""What older versions call or do otherwise: each entry says which version it is for."""

import torch


@torch.compiler.assume_constant_result
def is_autocast_available(device: str) -> bool:
    """The function of torch.amp. torch < 2.13: torch.compile cannot trace it (fullgraph=True)."""
    return torch.amp.is_autocast_available(device)
