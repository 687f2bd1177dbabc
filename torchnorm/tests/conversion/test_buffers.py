"""`torchnorm.convert`: a buffer is as before the watched pass, whatever the pass does to it."""

import pytest
import torch
from torch import nn

import torchnorm


class Running(nn.Module):
    """A layer, buffers, and what its forward pass does to them."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = nn.Linear(5, 3), change
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("lo", torch.arange(4.0))
        self.register_buffer("part", self.lo[1:3])
        self.register_buffer("gone", torch.ones(2), persistent=False)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        """Change them, and run the layer."""
        self.change(self)
        self.steps += 1
        return self.layer(x).relu()


CHANGES = {
    "resized": lambda m: m.empty.resize_(3).fill_(1.0),
    "larger": lambda m: m.lo.resize_(300).fill_(1.0),
    "smaller": lambda m: m.lo.resize_(1).fill_(7.0),
    "storage": lambda m: m.lo.untyped_storage().resize_(0),
    "dtype": lambda m: setattr(m.lo, "data", m.lo.to(torch.float64) + 1),
    "data": lambda m: setattr(m.lo, "data", torch.ones(2, 2)),
    "shared": lambda m: m.part.add_(5.0),
    "turned": lambda m: m.lo.resize_(2, 2).t_().add_(1.0),
    "assigned": lambda m: setattr(m, "lo", torch.ones(7)),
    "none": lambda m: setattr(m, "gone", None),
    "deleted": lambda m: delattr(m, "gone"),
    "added": lambda m: m.register_buffer("new", torch.ones(2)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_put_back(name, fails):
    def change(module):
        CHANGES[name](module)
        if fails:
            module.steps += 1
            raise KeyError("of the model")

    model = Running(change)
    buffers = dict(model.named_buffers())
    before = {n: (b.clone(), b.stride(), b.data_ptr()) for n, b in buffers.items()}
    if fails:
        with pytest.raises(ValueError, match="of the model"):
            torchnorm.convert(model, torch.ones(4, 5))
    else:
        assert torchnorm.convert(model, torch.ones(4, 5))["layer"].gate == "relu"
    after = dict(model.named_buffers())
    assert list(after) == list(before)
    for each, (value, stride, _) in before.items():
        assert after[each] is buffers[each]
        assert after[each].dtype == value.dtype
        assert after[each].stride() == stride
        assert torch.equal(after[each], value)
    assert model.part.untyped_storage().data_ptr() == model.lo.untyped_storage().data_ptr()
