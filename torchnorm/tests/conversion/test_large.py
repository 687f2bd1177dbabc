"""`torchnorm.convert` of models that are large, or have no data yet."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torchnorm
from torchnorm.tests.conversion.nets import Net

WATCHED = """
import resource, torch, torchnorm
from torch import nn

def blocks(width, count):
    return nn.Sequential(*(
        nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU())
        for _ in range(count)))

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

with torch.device("meta"):
    torchnorm.convert(blocks(8, 2), torch.ones(2, 8))  # what is imported on the way
    model = blocks(5800, 30)
    x = torch.ones(2, 512, 5800)
before = most()
report = torchnorm.convert(model, x)
assert sum(p.numel() for p in model.parameters()) > 1e9
assert len(report.deferred) == 30
assert (most() - before) * 1024 < x.numel() * 4, most() - before
"""


@pytest.mark.slow
def test_a_billion_parameters_without_data_need_no_memory():
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_watched_pass_holds_no_tensor():
    alive = []

    class Counting(nn.Module):
        def forward(self, x):
            """Count what is alive, and return x."""
            import gc

            large = (each for each in gc.get_objects() if type(each) is torch.Tensor)
            alive.append(sum(each.numel() == 7 * 1003 for each in large))
            return x

    layers = [part for _ in range(4) for part in (nn.Linear(1003, 1003), nn.ReLU(), Counting())]
    torchnorm.convert(nn.Sequential(*layers), torch.ones(7, 1003))
    assert alive[-1] <= alive[1] + 1


def net(decides=False):
    """Two layers, of which the second may not run."""

    def run(s, x):
        z = s.a(x)
        if decides and z.sum() > 0:
            return s.b(z)
        return s.b(F.relu(z))

    return Net(run, a=nn.Linear(8, 8), b=nn.Linear(8, 8))


def test_a_model_without_data_is_converted_and_loaded_later():
    with torch.device("meta"):
        model = net()
    report = torchnorm.convert(model, torch.ones(3, 8, device="meta"))
    assert report["a"].gate == "relu"
    model.to_empty(device="cpu").load_state_dict(net().state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = torchnorm.optim.in_neuron_coordinates(optimizer, model)
    model(torch.randn(12, 8)).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    with FakeTensorMode():
        report = torchnorm.convert(net(), torch.ones(3, 8))
    assert report["a"].gate == "relu"


def test_a_model_that_decides_by_numbers_cannot_be_watched_without_them():
    with torch.device("meta"):
        model = net(decides=True)
        x = torch.ones(3, 8)
    with pytest.raises(ValueError, match=r"without data .* on a real device .* or name the gates"):
        torchnorm.convert(model, x)
    assert type(model.a) is nn.Linear
    torchnorm.convert(net(decides=True), torch.ones(3, 8))  # the remedies
    assert torchnorm.convert(model, gates={"a": "relu", "b": None})["a"].gate == "relu"
