"""`torchnorm.convert`: hooks of ours and of the user, handles, checkpoints, and what is refused."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.models.torch import PRECONDITIONED, loss, one_thread
from parity_tests.models.torch_networks import slope
from torchnorm import DEFERRED, JointGate, Rule
from torchnorm.tests.conversion.nets import (
    D,
    Net,
    check_layer,
    conv,
    convert_copy,
    dense,
    images,
    norm,
    rows,
    step,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.2), nn.PReLU(1, 0.3, dtype=D)])
def test_a_gate_that_is_a_module_runs_without_hooks(act):
    def run(s, x):  # one activation, called twice
        return s.c3(s.act(s.b(s.act(s.c1(x))) + s.c2(x)))

    net = Net(run, c1=dense(), c2=dense(), c3=dense(), b=nn.LayerNorm(8, dtype=D), act=act)
    seen = []
    net.act.register_forward_hook(lambda m, i, o: seen.append(type(o)))
    converted, report = convert_copy(net, rows())
    assert report["c2"].deferred
    seen.clear()
    step(converted, rows())
    assert len(seen) == 2

    def expected(found):
        u = net.b(act(found["c1"][1])) + found["c2"][1]
        return slope(act.forward, u)

    check_layer(net, converted, rows(), "c2", expected)


def assert_uniform(model, name, x):
    """As a layer without an activation."""
    plain = copy.deepcopy(model)
    torchnorm.revert(plain)
    torchnorm.convert(plain, gates={name: None}, rule=PRECONDITIONED)
    found, expected = (step(m, x)[1][f"{name}.weight"] for m in (model, plain))
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_recomputed_layer_is_not_told_what_another_activation_sees(pooled):
    def f2(s, x):
        return F.max_pool2d(s.n2(x), 2) if pooled else s.n2(x)

    def run(s, x):
        x = checkpoint(lambda x: s.n(s.c(x)) + x, x, use_reentrant=True)
        return s.act(checkpoint(lambda x: f2(s, s.act(x)), x, use_reentrant=True))

    net = Net(run, c=conv(), n=norm(), n2=norm(), act=nn.Tanh())
    x = images().requires_grad_()
    converted, report = convert_copy(net, x)
    assert report["c"].deferred
    assert_uniform(converted, "c", x)


@pytest.mark.filterwarnings("ignore:gate of:UserWarning")
def test_handles_left_behind_are_dropped():
    net = Net(lambda s, x: s.act(s.a(x) + x), a=dense(), act=nn.Tanh())
    torchnorm.convert(net, rows(), rule=PRECONDITIONED)
    assert net.a.gate is DEFERRED
    for other in (rows()[:5], rows()):  # the layer alone, then the activation alone
        net.a(rows())
        net.act(other.clone().requires_grad_()).sum().backward()
    net = Net(lambda s, x: s.d(s.g(x) * s.u(x)), g=dense(), u=dense(), d=dense())
    reference = step(convert_copy(net, rows())[0], rows())[1]
    torchnorm.convert(net, rows(), rule=PRECONDITIONED)
    part = Net(lambda s, x: s.net.g(x) * s.net.u(x), net=net)
    for other in (rows()[:5], rows().flip(0)):  # through another root, so nothing starts afresh
        net.u(other)
        part(rows())
    net.u(rows()).sum().backward()
    found = step(net, rows())[1]
    assert all(torch.equal(found[name], reference[name]) for name in reference)


SEGMENTS = {
    "teller": lambda s, x, ck: ck(lambda z: s.d(F.relu(s.n(z).clone())), s.a(x)),
    "input": lambda s, x, ck: ck(lambda z: s.d(s.f(z + x)), s.a(x)),
    "two layers": lambda s, x, ck: ck(lambda z, y: s.d(s.f(z + s.b(x) + y)), s.a(x), s.c(x)),
    "factors": lambda s, x, ck: s.d(ck(s.a, x) * F.silu(ck(s.b, x))),
    "one factor": lambda s, x, ck: s.d(ck(lambda x: F.silu(s.b(x)), x) * s.a(x)),
    "both": lambda s, x, ck: s.d(ck(lambda x: s.a(x) * F.silu(s.b(x)), x)),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_checkpoints_between_a_layer_and_its_activation(name):
    def run(s, x):
        def ck(f, *args):
            return checkpoint(f, *args, use_reentrant=False) if s.active else f(*args)

        return SEGMENTS[name](s, x, ck)

    parts = {part: dense() for part in "abcd"}
    net = Net(run, **parts, n=nn.LayerNorm(8, dtype=D), f=Wave())
    net.active = False
    report = torchnorm.convert(net, rows(), rule=PRECONDITIONED)
    assert report["a"].deferred
    x = rows().requires_grad_()
    results = []
    for active in (False, True, True):
        net.active = active
        net.zero_grad()
        loss(net(x)).backward()
        results.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    for other in results[1:]:
        assert all(torch.equal(other[key], results[0][key]) for key in results[0])


class Wave(nn.Module):
    """An activation without a name."""

    def forward(self, x):
        """Apply it."""
        return torch.sin(x) ** 2


def test_hooks_of_the_user_that_change_an_output():
    net = nn.Sequential(dense(), nn.ReLU(), dense())
    net[0].register_forward_hook(lambda m, i, o: 2 * o + 1)
    converted, report = convert_copy(net, rows())
    check = slope(lambda z: F.relu(2 * z + 1), z := torch.randn(5, dtype=D))
    assert torch.equal(slope(converted[0].gate, z), check), report["0"]


CONSTANTS = {
    "of the batch": lambda s, x: s.b(torch.sigmoid(x.detach().abs().mean() * s.a(x))),
    "buffer": lambda s, x: s.b(torch.maximum(s.a(x), s.floor) * 2),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_tensors_are_no_constants(name):
    net = Net(CONSTANTS[name], a=dense(), b=dense())
    net.register_buffer("floor", torch.tensor(0.3, dtype=D))
    report = convert_copy(net, rows())[1]
    assert report["a"].gate is None
    assert report["a"].unresolved


def test_a_product_that_is_activated():
    net = Net(lambda s, x: s.d(F.relu(s.a(x) * s.b(x))), a=dense(), b=dense(), d=dense())
    report = convert_copy(net, rows())[1]
    for name in "ab":
        assert report[name].gate is None
        assert report[name].unresolved


@dataclass
class Output:
    """What a model returns."""

    y: torch.Tensor
    u: torch.Tensor


def test_outputs_in_a_dataclass_are_seen():
    def run(s, x):
        u = s.a(x) + x
        return Output(s.b(F.elu(u, inplace=True)), u)

    net = Net(run, a=dense(), b=dense())
    converted, _ = convert_copy(net, rows())
    results = []
    for model in (net, converted):
        x = rows().requires_grad_()
        out = model(x)
        (loss(out.y) + loss(out.u)).backward()
        results.append(x.grad)
    assert torch.equal(*results)


def test_revert_part_by_part_and_attributes_of_the_same_name():
    net = nn.Sequential(nn.Sequential(dense(), nn.LayerNorm(8, dtype=D), nn.ReLU()), dense())
    before = [set(vars(module)) for module in net.modules()]
    net[1].gate = "mine"
    report = torchnorm.convert(net, rows())
    assert report["1"].converted  # by its product: it has no attributes of ours
    torchnorm.revert(net[0])
    torchnorm.revert(net)
    assert net[1].gate == "mine"
    del net[1].gate
    assert not net._forward_pre_hooks
    assert before == [set(vars(module)) for module in net.modules()]
    with pytest.raises(ValueError, match="without a converted layer"):
        torchnorm.revert(net)


JOINT = {
    "transposed": lambda s, x: s.b(
        (lambda p, q: (p.transpose(0, 1) * q.transpose(0, 1).sigmoid()).transpose(0, 1))(
            *s.a(x).chunk(2, -1)
        )
    ),
    "batch": lambda s, x: s.c((lambda z: z[:2].tanh() * z[2:4])(s.a(x))),
    "chunks of the batch": lambda s, x: s.c((lambda p, q: p.tanh() * q)(*s.a(x)[:2].chunk(2))),
    "middle": lambda s, x: s.c((lambda p, q: p.tanh() * q)(*s.a(x).chunk(2, 1))),
}


@pytest.mark.parametrize("name", JOINT)
def test_joint_gates_that_are_not_of_one_sample_are_refused(name):
    net = Net(JOINT[name], a=dense(16), b=dense(), c=nn.Linear(16, 8, dtype=D))
    x = rows()[:12].reshape(3, 4, 8).repeat(2, 1, 1)
    rule = Rule(gradient="preconditioned", statistics_rows=5)
    report = torchnorm.convert(net, x, rule=rule)
    assert not isinstance(report["a"].gate, JointGate)
    assert report["a"].unresolved, report["a"]
    loss(net(x)).backward()
