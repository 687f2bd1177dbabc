"""What `bnp` and `quasi_diagonal` gather: of the passes that make the weights' gradients."""

import pytest
import torch
from torch.func import functional_call

from torchnorm.optim import bnp, quasi_diagonal
from torchnorm.tests.optim.nets import data, error, loss, network, same, values


def trained(tool, extra, take=torch.Tensor.backward):
    """The parameters after some steps, with another pass at the side of each."""
    model = network()
    optimizer = tool(torch.optim.SGD(model.parameters(), 1e-4), model)
    for _ in range(3):
        optimizer.zero_grad()
        x, y = data()
        extra(model)
        value = loss(model, x.requires_grad_(), y)
        extra(model)
        torch.autograd.grad(value, x, retain_graph=True)  # a saliency
        take(value)
        extra(model)
        optimizer.step()
    return values(model)


def other():
    return (data()[0] * 7 + 3).requires_grad_()


def by_the_input(model):
    x = other()
    torch.autograd.grad(model(x).square().sum(), x)


def with_inputs(model):
    x = other()
    model(x).square().sum().backward(inputs=[x])


def learning(model):
    (model(other()) * 0.1).square().sum().backward()


def teacher(model):
    copies = {name: p.detach() for name, p in model.named_parameters()}
    with torch.no_grad():
        functional_call(model, copies, (other(),))


def others(model):
    copies = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    functional_call(model, copies, (other(),)).square().sum().backward()


def frozen(model):
    model.requires_grad_(False)
    model(other()).square().sum().backward()
    model.requires_grad_(True)


def looked_at(model):
    with torch.no_grad():
        model(other())


PASSES = [by_the_input, with_inputs, teacher, others, frozen, looked_at]


@pytest.mark.parametrize("tool", [bnp, quasi_diagonal])
@pytest.mark.parametrize("extra", PASSES)
def test_other_passes_are_not_gathered(tool, extra):
    assert same(trained(tool, extra), trained(tool, lambda model: None))


@pytest.mark.parametrize("tool", [bnp, quasi_diagonal])
def test_gradients_by_the_weights_are(tool):
    """Also where they are asked for, and put there by hand."""
    expected = trained(tool, lambda model: None)
    assert error(trained(tool, learning), expected) > 1e-6
    model = network()
    optimizer = tool(torch.optim.SGD(model.parameters(), 1e-4), model)
    for _ in range(3):
        found = torch.autograd.grad(loss(model, *data()), list(model.parameters()))
        for p, g in zip(model.parameters(), found, strict=True):
            p.grad = g
        optimizer.step()
        optimizer.zero_grad()
    assert same(values(model), expected)
