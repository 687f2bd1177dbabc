"""Inputs that `torch.nn.Linear` takes and that no statistics can be taken of."""

import pytest
import torch
from torch import nn

import torchnorm
from torchnorm import Rule

LAYOUTS = {
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(3, 5), torch.ones(6, 5)], layout=torch.jagged
    ),
    "strided": lambda: torch.nested.nested_tensor([torch.ones(3, 5), torch.ones(6, 5)]),
    "sparse_coo": lambda: torch.eye(8)[:, :5].to_sparse(),
    "sparse_csr": lambda: torch.eye(8)[:, :5].to_sparse_csr(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*(prototype|beta state)")
def test_no_step_takes_what_is_not_dense(layout):
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torchnorm.prepare(model, optimizer, torch.randn(6, 5), rule=Rule(statistics_every=3))
    x = LAYOUTS[layout]()
    for _ in range(7):
        with pytest.raises(TypeError, match=rf"^input: got a \w+ tensor \({layout} layout\), exp"):
            model(x)
        optimizer.zero_grad()
        model(torch.randn(6, 5)).sum().backward()
        optimizer.step()
    model.eval()  # nothing is recorded
    assert model(x).size(-1) == 4


@pytest.mark.parametrize("method", ["bnp", "quasi_diagonal"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*(prototype|beta state)")
def test_other_optimizers_say_the_same(layout, method):
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = getattr(torchnorm.optim, method)(optimizer, model)
    with pytest.raises(TypeError, match=rf"^input: got a \w+ tensor \({layout} layout\), exp"):
        model(LAYOUTS[layout]())
    assert wrapped is not None
