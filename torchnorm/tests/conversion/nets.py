"""Small networks for the tests of `torchnorm.convert`, and what they are compared with."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests.models.torch import PRECONDITIONED, expected_gradients, loss, spy
from parity_tests.tolerances import GATE, slice_error

D = torch.float64


class Net(nn.Module):
    """A network whose forward is given: run(self, x)."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        """Run it."""
        return self.run(self, x)


def dense(width=8, **kwargs):
    """A dense layer on 8 features."""
    return nn.Linear(8, width, dtype=D, **kwargs)


def conv(channels=4, **kwargs):
    """A convolution on 4 channels."""
    return nn.Conv2d(4, channels, 3, padding=1, dtype=D, **kwargs)


def norm():
    """A BatchNorm on 4 channels."""
    return nn.BatchNorm2d(4, dtype=D)


def rows():
    """A batch for dense layers."""
    torch.manual_seed(3)
    return torch.randn(12, 8, dtype=D) * 2 + 1


def images():
    """A batch for convolutions."""
    torch.manual_seed(3)
    return torch.randn(3, 4, 6, 6, dtype=D)


def step(model, x):
    """(output, gradients)."""
    model.zero_grad()
    torch.manual_seed(1)  # as `spy` has it
    out = model(x)
    loss(out).backward()
    named = model.named_parameters()
    return out.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def check_layer(reference, converted, x, name, slope_of):
    """The layer's gradients are the oracle's under the slope that the function finds."""
    reference = copy.deepcopy(reference)
    seen, errors = spy(reference, (x,))
    s = slope_of(seen)
    kernel, bias = expected_gradients(reference.get_submodule(name), seen[name][0], errors[name], s)
    gradients = step(converted, x)[1]
    ours = gradients[f"{name}.weight"].flatten(1)
    assert slice_error(ours, kernel, axes=(0,)) <= GATE["float64"]
    if bias is not None:
        assert slice_error(gradients[f"{name}.bias"], bias, axes=()) <= GATE["float64"]


def pulled(move, z, slope):
    """A slope behind a linear move, at z: as the framework's derivative of the move brings it."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(move(z), z, slope)[0]


def convert_copy(model, x, **kwargs):
    """(a converted copy, its report)."""
    model = copy.deepcopy(model)
    return model, torchnorm.convert(model, x, **({"rule": PRECONDITIONED} | kwargs))


class LearnedSwish(nn.Module):
    """An activation with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.3, dtype=D))

    def forward(self, x):
        """Apply it."""
        return x * torch.sigmoid(self.beta * x)


class Sharp(nn.Module):
    """An activation without a name."""

    def forward(self, x):
        """Apply it."""
        return torch.sin(x) ** 2


def act(f):
    """Two dense layers with a function between them."""
    return Net(lambda s, x: s.b(f(s.a(x))), a=dense(), b=dense())


def act_module(module):
    """Two dense layers with a module between them."""
    return Net(lambda s, x: s.b(s.f(s.a(x))), a=dense(), f=module, b=dense())


class Bottleneck(nn.Module):
    """As torchvision writes it: one in-place relu, called three times, and a functional sum."""

    def __init__(self, early):
        super().__init__()
        self.early = early
        self.c1, self.c2, self.c3 = (conv(bias=False) for _ in range(3))
        self.n1, self.n2, self.n3 = norm(), norm(), norm()
        self.down = nn.Sequential(conv(bias=False), norm())
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Identity()

    def forward(self, x):
        """The block."""
        shortcut = self.down(x) if self.early else None
        out = self.relu(self.n1(self.c1(x)))
        out = self.relu(self.n2(self.c2(out)))
        out = self.n3(self.c3(out))
        out += self.down(x) if shortcut is None else shortcut
        return self.block(self.relu(out))


class Network(nn.Module):
    """See `kinds`: without a closure, so that it can be pickled."""

    d: nn.Module
    g: nn.Module
    u: nn.Module
    j: nn.Module
    out: nn.Module

    def __init__(self, block, parts):
        super().__init__()
        self.block = block
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        """Run it."""
        x = self.block(x).flatten(1)[:, :8]
        x = self.d(F.silu(self.g(x)) * self.u(x))
        a, b = self.j(x).chunk(2, -1)
        return self.out(a * torch.sigmoid(b))


def assert_same_step(model, other, gate=0.0):
    """Output and all gradients agree; bit for bit, unless a gate is given."""
    (out, found), (expected_out, expected) = step(model, images()), step(other, images())
    assert slice_error(out, expected_out, axes=()) <= gate
    found = {name.removeprefix("module."): value for name, value in found.items()}
    for name in expected:
        assert slice_error(found[name], expected[name], axes=(0,)) <= gate, name


def kinds():
    """A network with deferred, gated, joint and plain layers."""
    torch.manual_seed(5)

    parts = {"g": dense(), "u": dense(), "d": dense(), "j": dense(16), "out": dense()}
    return Network(Bottleneck(True), parts)
