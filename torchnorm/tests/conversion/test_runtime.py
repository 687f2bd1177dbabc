"""`torchnorm.convert`: converted models in all that is done with a model."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.models.torch import PRECONDITIONED, loss, one_thread
from parity_tests.tolerances import GATE, VISIBLE, slice_error
from torchnorm.tests.conversion.nets import (
    D,
    Net,
    assert_same_step,
    conv,
    convert_copy,
    dense,
    images,
    kinds,
    norm,
    rows,
    step,
)
from torchnorm.tests.versions import WHOLE_GRAPHS


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def test_copies_pickles_and_checkpoints():
    model, report = convert_copy(kinds(), images())
    assert len(report.deferred) == 6
    reference = copy.deepcopy(model)
    step(reference, images())  # a copy of a model that has run
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=False)
    for other in (copy.deepcopy(reference), pickle.loads(pickle.dumps(reference)), saved):
        assert_same_step(other, model)
        assert list(other.state_dict()) == list(kinds().state_dict())
    plain = kinds()
    plain.load_state_dict(model.state_dict(), strict=True)
    plain_gradients = step(plain, images())[1]
    ours = step(model, images())[1]
    assert slice_error(ours["block.c3.weight"], plain_gradients["block.c3.weight"]) > VISIBLE
    one = copy.deepcopy(model)
    step(one, images())
    torchnorm.revert(one)
    for (_, a), (_, b) in zip(one.named_modules(), plain.named_modules(), strict=True):
        assert type(a) is type(b)
        assert set(vars(a)) == set(vars(b))


def test_functional_call():
    model, _ = convert_copy(kinds(), images())
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def run(parameters):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        return loss(torch.func.functional_call(model, (parameters, buffers), (images(),)))

    gradients = torch.func.grad(run)(parameters)
    expected = step(model, images())[1]
    for name in expected:
        assert slice_error(gradients[name], expected[name], axes=(0,)) <= GATE["float64"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@WHOLE_GRAPHS
def test_compile(backend):
    torch.compiler.reset()
    x, model = images(), kinds()
    if backend == "inductor":  # which compiles for long
        x, model = rows(), nn.Sequential(dense(), nn.LayerNorm(8, dtype=D), nn.ReLU(), dense())
    model, report = convert_copy(model, x)
    assert report.deferred
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    for _ in range(2):
        model.zero_grad()
        other.zero_grad()
        loss(model(x)).backward()
        loss(compiled(x)).backward()
        for (name, p), (_, q) in zip(
            model.named_parameters(), other.named_parameters(), strict=True
        ):
            assert slice_error(q.grad, p.grad, axes=(0,)) <= 1e-12, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    def run(s, x):
        x = checkpoint(s.net.block, x, use_reentrant=reentrant)
        x = x.flatten(1)[:, :8]
        return checkpoint(s.tail, x, use_reentrant=reentrant)

    def tail(s, x):
        return s.net.out(s.net.d(F.silu(s.net.g(x)) * s.net.u(x)))

    model = Net(run, net=kinds())
    model.tail = lambda x: tail(model, x)
    x = images().requires_grad_()
    report = torchnorm.convert(model, x, rule=PRECONDITIONED)
    assert len(report.deferred) == 6
    gradients = []
    for active in (True, False):
        if not active:
            model.run = lambda s, x: s.tail(s.net.block(x).flatten(1)[:, :8])
        model.zero_grad()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
        loss(model(x)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        assert torch.equal(gradients[0][name], gradients[1][name]), name


def test_checkpointing_the_layer_only():
    def run(s, x):
        x = checkpoint(s.c, x, use_reentrant=False) if s.active else s.c(x)
        return F.relu(s.n(x))

    model = Net(run, c=conv(), n=norm())
    gradients = []
    for active in (True, False, True):
        model.active = active
        if not gradients:
            torchnorm.convert(model, images(), rule=PRECONDITIONED)
        gradients.append(step(model, images())[1]["c.weight"])
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_data_parallel(tmp_path):
    import torch.distributed as dist

    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model, _ = convert_copy(kinds(), images())
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        assert_same_step(wrapped, model)
        with pytest.raises(ValueError, match="before wrapping it in DDP"):
            torchnorm.convert(wrapped, images())
    finally:
        dist.destroy_process_group()


def test_a_pass_that_broke_off_leaves_no_handle_behind():
    model, _ = convert_copy(kinds(), images())
    expected = step(copy.deepcopy(model), images())[1]
    model.block.n3.register_forward_hook(stop := Stop())
    with pytest.raises(InterruptedError):
        model(images()[:2])
    stop.off = True
    found = step(model, images())[1]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.no_grad():
        model(images())
    model.eval()(images())


class Stop:
    """Breaks off."""

    off = False

    def __call__(self, *_):
        """The hook."""
        if not self.off:
            raise InterruptedError


def test_autocast_is_the_frameworks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    converted, _ = convert_copy(model, torch.randn(4, 8))
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = converted(x), model(x)
    assert torch.equal(out, expected)
    assert out.dtype == expected.dtype
    out.float().sum().backward()
    assert converted[0].weight.grad.dtype == torch.float32


def test_a_plain_rule_is_the_framework():
    model = kinds()
    converted, _ = convert_copy(model, images(), rule=torchnorm.PLAIN)
    assert_same_step(converted, model, GATE["float64"])


def test_the_frameworks_own_hooks_see_what_the_framework_returns():
    seen = []
    model = nn.Sequential(conv(), norm(), nn.ReLU())
    model[0].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    torchnorm.convert(model, images(), rule=PRECONDITIONED)
    assert seen == []  # the watched pass leaves nothing behind
    model(images())
    assert seen == [(3, 4, 6, 6)]


def test_fused_inference_goes_on_as_it_was():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=D).eval()
    x = rows().reshape(3, 4, 8)
    with torch.no_grad():
        expected = layer(x)
        torchnorm.convert(layer, x, rule=PRECONDITIONED)
        assert torch.equal(layer(x), expected)
