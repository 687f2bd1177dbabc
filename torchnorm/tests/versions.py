"""What older versions of PyTorch cannot do."""

import pytest
import torch

WHOLE_GRAPHS = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="torch.compile(fullgraph=True) needs torch >= 2.13"
)
