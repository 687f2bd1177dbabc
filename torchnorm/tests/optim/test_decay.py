"""SGD's weight decay, at rates that nobody may look at: tensors on a device."""

import itertools

import pytest
import torch

from torchnorm.optim import decay, in_neuron_coordinates
from torchnorm.tests.optim.nets import data, error, loss, network, values

RATES = [0.0, 0.02]


def trained(rates, *, unseen, groups, maximize=False):
    """The parameters after steps at the rates of weights and biases, as tensors where unseen."""
    model = network()
    each = [list(model.parameters())[0::2], list(model.parameters())[1::2]]
    kinds = [torch.tensor if tensor else lambda rate, **_: rate for tensor in unseen]
    start = [kind(0.0, dtype=torch.float64) for kind in kinds]
    parts = [{"params": p, "lr": rate} for p, rate in zip(each, start, strict=True)]
    if groups == 1:
        parts = [{"params": list(model.parameters()), "lr": start[0]}]
    options = {"momentum": 0.9, "weight_decay": 0.1, "foreach": False, "maximize": maximize}
    optimizer = torch.optim.SGD(parts, lr=0.1, **options)
    if groups == 2:
        optimizer.param_groups[1]["weight_decay"] = 0.2
    in_neuron_coordinates(optimizer, model)
    for pair in [*rates, (0.01, 0.02)]:
        for group, rate, kind in zip(optimizer.param_groups, pair, kinds, strict=False):
            group["lr"] = kind(rate, dtype=torch.float64)
        optimizer.zero_grad()
        x, y = data()
        (loss(model, x, y) * (-1 if maximize else 1)).backward()
        optimizer.step()
    return values(model)


@pytest.fixture
def device(monkeypatch):
    """As if every rate that is a tensor were on a device, which is not waited for."""
    seen = decay._amount

    def amount(group, name):
        return 1.0 if isinstance(group.get(name, 0), torch.Tensor) else seen(group, name)

    monkeypatch.setattr(decay, "_amount", amount)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("unseen", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("rates", list(itertools.product(RATES, repeat=2)))
@pytest.mark.parametrize("groups", [1, 2])
def test_rates_of_zero_make_nothing_infinite(rates, unseen, groups):
    found = trained([rates], unseen=unseen, groups=groups)
    assert all(bool(value.isfinite().all()) for value in found)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_rate_that_grows_from_zero(groups, maximize, request):
    rates = [(0.0, 0.0), (0.01, 0.02), (0.02, 0.03)]
    settings = {"groups": groups, "maximize": maximize}
    expected = trained(rates, unseen=(False, False), **settings)
    request.getfixturevalue("device")
    assert error(trained(rates, unseen=(True, True), **settings), expected) < 1e-12
