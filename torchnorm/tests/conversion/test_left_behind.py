"""`torchnorm.convert`: the watched pass leaves nothing behind, wherever a model stores tensors."""

import collections
import copy
import functools
import gc
import random
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests.models.torch import one_thread
from torchnorm.tests.conversion.nets import D, Net, act, dense, images, kinds, rows


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _no_collector():
    """What is alive is held by something: no cycle is ever found."""
    torchnorm.convert(act(F.relu), rows())  # constants that are made once
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def tensors():
    """The tensors that are alive."""
    return [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]


def alive():
    """How many tensors are alive, and how many of them have a graph."""
    found = tensors()
    return len(found), sum(each.grad_fn is not None for each in found)


def convert_cleanly(model, x):
    """Convert; not one more tensor is alive then, and none has a graph that had none."""
    before = alive()
    report = torchnorm.convert(model, x)
    assert alive() == before
    copy.deepcopy(model)
    return report


class Notes:
    """An object of somebody else."""

    __slots__ = ("count", "last")

    def __init__(self):
        self.count = 0


class Hoarder(nn.Module):
    """Stores what it makes in every place that there is."""

    shared = {}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.a, self.b = dense(), dense()
        self.notes = Notes()
        self.config = types.SimpleNamespace(calls=0, cache={"states": []})
        self.queue = collections.deque([1, 2], maxlen=2)
        self.ordered = collections.OrderedDict(x=1, y=2)
        self.table = None

    def forward(self, x):
        """Two layers."""
        z = self.a(x)
        self.notes.count += 1
        self.notes.last = z
        self.config.calls += 1
        self.config.last = z.T
        self.config.cache["states"].append(z.view(-1))
        self.queue.append(z)
        self.ordered.move_to_end("x")
        self.ordered["z"] = z
        self.shared[len(self.shared)] = z
        if self.table is None:
            self.table = torch.arange(3.0).cos()
            self.register_buffer("lazy", z[0].clone())
        return self.b(F.relu(z))


def test_what_a_model_stores_is_put_back():
    model = Hoarder()
    assert convert_cleanly(model, rows()).converted
    assert model.notes.count == model.config.calls == 0
    assert not hasattr(model.notes, "last")
    assert vars(model.config) == {"calls": 0, "cache": {"states": []}}
    assert list(model.queue) == [1, 2]
    assert list(model.ordered) == ["x", "y"]
    assert model.shared == {}
    assert model.table is None
    assert not hasattr(model, "lazy")


@pytest.mark.parametrize("name", ["deferred", "direct", "train fails", "no_grad", "inference"])
def test_no_tensor_is_alive(name):
    def run(s, x):
        if name == "train fails" and s.training:
            raise KeyError
        return s.b(F.relu(s.a(x)))

    model = kinds() if name == "deferred" else Net(run, a=dense(), b=dense())
    if name in ("no_grad", "inference"):
        mode = torch.no_grad() if name == "no_grad" else torch.inference_mode()
        model.run = mode(run)
    report = convert_cleanly(model, images() if name == "deferred" else rows())
    assert report["d" if name == "deferred" else "a"].converted
    if name != "deferred":
        assert report["a"].gate == "relu"


def test_no_tensor_is_alive_where_the_pass_breaks_off():
    def run(s, x):
        s.z = s.a(x)
        raise KeyError

    model = Net(run, a=dense())
    before = len(tensors())
    with pytest.raises(ValueError, match="example_input"):
        torchnorm.convert(model, rows())
    assert len(tensors()) == before
    assert not hasattr(model, "z")


def test_buffers_and_caches_that_are_written_to():
    def run(s, x):
        z = s.a(x)
        s.buffer.copy_(z[0])
        s.cache[:, :2].copy_(z[:, :2])  # through a view
        s.cache[:, 3] = z[:, 3]
        return s.b(F.relu(s.c(x)))

    model = Net(run, a=dense(), b=dense(), c=dense())
    model.register_buffer("buffer", torch.ones(8, dtype=D))
    model.cache = torch.ones(12, 8, dtype=D)
    convert_cleanly(model, rows())
    for value in (model.buffer, model.cache):
        assert torch.equal(value, torch.ones_like(value))
        assert not value.requires_grad


def test_the_example_is_as_it_was():
    def run(s, x):
        x.requires_grad_()
        u = s.b(torch.tanh(s.a(x)))
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return u + slope

    x = rows()
    assert convert_cleanly(Net(run, a=dense(), b=dense()), x)["a"].gate == "tanh"
    assert not x.requires_grad
    model = Net(lambda s, x: s.b(F.relu(s.a(x.mul_(2).add_(s.c(x[:1]))))), a=dense(), b=dense())
    model.c = dense()
    assert convert_cleanly(model, x)["a"].gate == "relu"
    assert torch.equal(x, rows())
    history = (rows().requires_grad_() * 2).tanh()  # a graph of before stays
    torchnorm.convert(Net(lambda s, x: s.b(F.relu(s.a(x))), a=dense(), b=dense()), history)
    history.sum().backward()


def test_views_that_must_not_be_asked_for_their_graph():
    def run(s, x):
        with torch.no_grad():
            view = s.a.weight.view(-1)
            s.a.weight.mul_(0.5)
            s.norm = view.norm() + view.sum()
        return s.b(F.relu(s.a(x)))

    model = Net(run, a=dense(), b=dense())
    weight = model.a.weight.detach().clone()
    assert convert_cleanly(model, rows())["a"].gate == "relu"
    assert torch.equal(model.a.weight, weight)


def test_parameters_and_gradients_are_as_they_were():
    def run(s, i):
        z = F.relu(s.a(s.e(i)))
        loss = s.b(z).square().mean()
        loss.backward(retain_graph=True)
        return loss

    model = Net(run, e=nn.Embedding(9, 8, max_norm=0.5, dtype=D), a=dense(), b=dense())
    weight = model.e.weight.detach().clone()
    model.a.weight.grad = torch.ones(8, 8, dtype=D)
    torchnorm.convert(model, torch.arange(9))
    assert torch.equal(model.e.weight, weight)
    assert torch.equal(model.a.weight.grad, torch.ones(8, 8, dtype=D))
    assert model.b.weight.grad is None


class Recorder:
    """Hooks that store, as objects, closures and partial functions do."""

    def __init__(self):
        self.seen = {}

    def __call__(self, module, args, output):
        """The hook."""
        self.seen["z"] = output

    def method(self, module, args, output):
        """Another one."""
        self.seen["y"] = args


def test_hooks_that_store():
    model, recorder, listed, closed = act(F.relu), Recorder(), [], []
    model.a.register_forward_hook(recorder)
    model.b.register_forward_hook(recorder.method)
    model.b.register_forward_hook(functools.partial(lambda to, m, i, o: to.append(o), listed))
    model.b.register_forward_pre_hook(lambda m, i: closed.append(i))
    convert_cleanly(model, rows())
    assert recorder.seen == {}
    assert listed == closed == []


ELSEWHERE = []


def test_what_cannot_be_found_has_no_graph():
    def run(s, x):
        z = s.a(x)
        ELSEWHERE.extend([z, z.view(-1), z[2:], z.exp()])
        return s.b(F.relu(z))

    model = Net(run, a=dense(), b=dense())
    torchnorm.convert(model, rows())
    assert len(ELSEWHERE) == 4
    for tensor in ELSEWHERE:
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
    assert torch.equal(copy.deepcopy(ELSEWHERE)[1].view(12, 8), ELSEWHERE[0])
    ELSEWHERE.clear()


@pytest.mark.parametrize("stored", [False, True])
def test_parameters_may_be_resized(stored):
    model = nn.Sequential(nn.Embedding(10, 8, dtype=D), dense(), nn.ReLU(), dense())
    if stored:
        model[0].register_forward_hook(lambda m, i, o: ELSEWHERE.append(o))
    torchnorm.convert(model, torch.arange(5))
    model[0].weight.data = torch.randn(20, 8, dtype=D)
    model(torch.arange(15)).sum().backward()
    assert model[0].weight.grad.shape == (20, 8)
    ELSEWHERE.clear()


class Hostile:
    """Lets nobody look into it."""

    __hash__ = None

    @property
    def __dict__(self):
        """Not to be read."""
        raise RuntimeError

    def __getattr__(self, name):
        raise RuntimeError

    def __eq__(self, other):
        raise RuntimeError


def test_objects_that_are_not_to_be_looked_at():
    model = Net(lambda s, x: s.b(F.relu(s.adjacent @ s.a(x))), a=dense(), b=dense())
    model.register_buffer("adjacent", torch.eye(12, dtype=D).to_sparse())
    model.hostile, model.lock = [Hostile()], threading.Lock()
    assert "relu follows" in torchnorm.convert(model, rows())["a"].reason


def test_generators_are_put_back():
    numpy = pytest.importorskip("numpy")

    def run(s, x):
        noise = torch.rand(8, generator=s.torch) + s.numpy.random() + s.python.random()
        return s.b(F.relu(s.a(x))) + noise

    model = Net(run, a=dense(), b=dense())
    model.torch = torch.Generator().manual_seed(3)
    model.numpy, model.python = numpy.random.default_rng(3), random.Random(3)
    torchnorm.convert(model, rows())
    assert torch.equal(
        torch.rand(3, generator=model.torch),
        torch.rand(3, generator=torch.Generator().manual_seed(3)),
    )
    assert model.numpy.random() == numpy.random.default_rng(3).random()
    assert model.python.random() == random.Random(3).random()
