"""Another normalizer in the place of a model's."""

import pytest
import torch
from torch import nn

from torchnorm.normalizers import replace


def _model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))


def test_what_both_have_stays_and_the_rest_goes():
    model = _model().double().eval()
    weights = [model[1].weight, model[3].weight]
    names = replace(model, lambda channels: nn.GroupNorm(2, channels), skip=["3"])
    assert names == ["1"]
    assert isinstance(model[1], nn.GroupNorm)
    assert isinstance(model[3], nn.BatchNorm2d)
    assert model[1].weight is weights[0]
    assert model[1].weight.dtype == torch.float64
    assert not model[1].training
    assert not any("1.running" in name for name in model.state_dict())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    z = model[0](x)
    expected = nn.functional.group_norm(z, 2, *model[1].parameters())
    torch.testing.assert_close(model[1](z), expected)


def test_running_statistics_are_taken_over():
    model = _model()
    with torch.no_grad():
        model[1].running_mean.fill_(3)
    replace(model, lambda channels: nn.BatchNorm2d(channels, eps=0.5))
    assert model[1].eps == 0.5
    assert model[1].running_mean.tolist() == [3.0] * 4


def test_one_that_stands_in_two_places_is_replaced_by_one():
    norm = nn.BatchNorm2d(4)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)})
    assert replace(model, lambda channels: nn.InstanceNorm2d(channels)) == ["a", "b.0"]
    assert model["a"] is model["b"][0]


def test_bad_input_changes_nothing():
    model = _model()
    before = list(model)
    with pytest.raises(TypeError, match=r"model: got int, expected a torch\.nn\.Module"):
        replace(3, nn.BatchNorm2d)
    with pytest.raises(TypeError, match=r"make: got NoneType, expected a torch\.nn\.Module"):
        replace(model, lambda channels: None)
    with pytest.raises(ValueError, match="divisible by num_groups"):
        replace(model, lambda channels: nn.GroupNorm(3, channels))
    with pytest.raises(
        ValueError, match="got a Linear without one, expected a model that contains"
    ):
        replace(nn.Linear(2, 2), nn.BatchNorm2d)
    with pytest.raises(ValueError, match="got one itself"):
        replace(nn.BatchNorm2d(4), nn.BatchNorm2d)
    assert all(one is other for one, other in zip(before, model, strict=True))
