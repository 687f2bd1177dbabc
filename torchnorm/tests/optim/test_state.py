"""Checkpoints, copies and errors of `in_neuron_coordinates`."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import torchnorm
from parity_tests.tolerances import SAME_STEPS
from torchnorm import Rule
from torchnorm.optim import in_neuron_coordinates
from torchnorm.statistics.tracked import Statistics
from torchnorm.tests.optim.nets import (
    adam,
    data,
    error,
    loss,
    network,
    same,
    sgd,
    train,
    values,
)

RULES = [
    Rule(),
    Rule(decay=0.9, weighting="error", step_size="standardized"),
    Rule(weighting="uniform", scale="layer", statistics_every=2),
]


def through_a_file(state):
    """As a checkpoint of which nothing but tensors is trusted."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("make", [adam, sgd])
def test_resuming_is_bit_for_bit(rule, make, monkeypatch):
    """Five steps more, of which `statistics_every` skips some."""
    monkeypatch.setattr(
        "torchnorm.modules.neuron_stats.is_due", lambda step, age, every: age >= every
    )
    model = network(rule)
    optimizer = make(model)
    train(model, optimizer, 3)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    expected = train(model, optimizer, 5)
    other = network(rule)
    again = make(other)
    train(other, again, 1)  # what was there before does not matter
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert same(train(other, again, 5), expected)
    mine, theirs = (o.state_dict()["neuron_stats"] for o in (optimizer, again))
    assert all(same(mine[name].values(), theirs[name].values()) for name in mine)
    statistics = Statistics(**theirs["0"])
    assert statistics.steps_and_age[0] == 8
    assert statistics.relative == (rule.step_size == "plain")


def test_a_state_dict_is_no_view_of_what_goes_on():
    model = network()
    optimizer = adam(model)
    train(model, optimizer, 1)
    state = optimizer.state_dict()["neuron_stats"]
    before = copy.deepcopy(state)
    train(model, optimizer, 1, tuple(a + 1 for a in data()))
    assert same(state["0"].values(), before["0"].values())


def test_the_models_state_dict_is_the_frameworks():
    model, reference = network(), network(kind=nn.Linear)
    optimizer = adam(model)
    train(model, optimizer, 1)
    assert list(model.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(reference.state_dict(), strict=True)
    assert len(list(model.parameters())) == 4


def test_what_was_gathered_is_not_saved_nor_kept_when_loading():
    model, other = network(), network()
    optimizer, again = adam(model), adam(other)
    x, y = data()
    state = optimizer.state_dict()
    loss(model, 100 * x, y).backward()
    optimizer.load_state_dict(state)
    model.zero_grad()
    for each, its in ((model, optimizer), (other, again)):
        loss(each, x, y).backward()
        its.step()
    assert same(values(model), values(other))


def test_what_leaves_the_statistics_out_is_refused():
    """PyTorch's helper for sharded checkpoints keeps the entries that it knows."""
    model, other = network(), network()
    optimizer, again = adam(model), adam(other)
    train(model, optimizer, 1)
    state = get_optimizer_state_dict(model, optimizer)
    with pytest.raises(ValueError, match="got one without 'neuron_stats', expected that of an"):
        set_optimizer_state_dict(other, again, state)
    assert same(values(other), values(network()))


def test_states_that_do_not_fit_are_refused():
    model, plain = network(), network(kind=nn.Linear)
    optimizer = adam(model)
    train(model, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    inner = torch.optim.Adam(plain.parameters())
    with pytest.raises(ValueError, match="got one without 'neuron_stats', expected that of an"):
        optimizer.load_state_dict(inner.state_dict())
    other = nn.Sequential(torchnorm.Linear(5, 8, gate="relu"), nn.ReLU(), nn.Linear(8, 3))
    for wrong in (other, network(Rule(weighting="uniform"))):
        with pytest.raises(ValueError, match=r"neuron_stats: got statistics of \['0'.*another mod"):
            optimizer.load_state_dict(adam(wrong).state_dict())
    broken = copy.deepcopy(before)
    broken["param_groups"] = []
    broken["neuron_stats"]["0"]["scalars"] += 1
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(broken)
    after = optimizer.state_dict()["neuron_stats"]
    assert same(after["0"].values(), before["neuron_stats"]["0"].values())


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("make", [adam, sgd])
def test_copies_of_model_and_optimizer_go_on(way, make):
    """Each by itself: what one does is nothing to the other."""
    model = network(Rule(decay=0.5))
    optimizer = make(model)
    train(model, optimizer, 2)
    pair = (model, optimizer)
    copied, its = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(its) is type(optimizer)
    before = values(model)
    after = train(copied, its, 3)
    assert same(values(model), before)
    assert same(train(model, optimizer, 3), after)
    assert not same(after, before)
    state = its.state_dict()
    its.load_state_dict(state)


def test_a_copy_of_the_model_alone_is_a_model():
    model = network()
    train(model, adam(model), 1)
    other = copy.deepcopy(model)
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    assert same(train(other, adam(other), 2), train(fresh, adam(fresh), 2))


def test_a_new_optimizer_starts_anew():
    """With statistics of its own, and the first one is not silently another one's."""
    model = network(Rule(decay=0.9))
    first = adam(model)
    train(model, first, 2)
    loss(model, 100 * data()[0], data()[1]).backward()
    model.zero_grad(set_to_none=False)
    fresh = network(Rule(decay=0.9))
    fresh.load_state_dict(model.state_dict())
    assert same(train(model, adam(model), 2), train(fresh, adam(fresh), 2))
    with pytest.raises(ValueError, match="got none of this optimizer's in '0', expected those"):
        train(model, first, 1)


# --- Errors ---------------------------------------------------------------------------------------


def test_a_reverted_model_is_told():
    model = network(kind=nn.Linear)
    torchnorm.convert(model, data()[0])
    optimizer = adam(model)
    train(model, optimizer, 1)
    torchnorm.revert(model)
    before = values(model)
    with pytest.raises(ValueError, match="layer was reverted, or has another optimizer now: make"):
        train(model, optimizer, 1)
    assert same(values(model), before)
    assert not list(model.buffers())


def test_types_are_checked():
    model = network()
    with pytest.raises(TypeError, match="optimizer: got Sequential, expected a torch"):
        in_neuron_coordinates(model, model)
    with pytest.raises(TypeError, match="model: got Adam, expected a torch"):
        in_neuron_coordinates(*[torch.optim.Adam(model.parameters())] * 2)


def tied(what):
    model = nn.Sequential(*(torchnorm.Linear(4, 4, gate=None) for _ in range(2)))
    setattr(model[1], what, getattr(model[0], what))
    return model


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: network(kind=nn.Linear), "model: got one in which no layer records statistics"),
        (lambda: network(torchnorm.PLAIN), "model: got one in which no layer records statistics"),
        (
            lambda: network(Rule(gradient="preconditioned")),
            "got the layer '0' with gradient='preconditioned', expected 'plain_with_statistics', "
            "the default",
        ),
        (lambda: tied("weight"), "model: got one weight in the layers '0' and '1', expected one"),
        (lambda: tied("bias"), "model: got one bias in the layers '0' and '1', expected one each"),
    ],
)
def test_models_that_do_not_fit_are_refused(make, text):
    model = make()
    with pytest.raises(ValueError, match=text):
        adam(model)


def test_optimizers_that_do_not_fit_are_refused():
    model = network()
    optimizer = adam(model)
    with pytest.raises(ValueError, match="got one that is in neuron coordinates already, expected"):
        in_neuron_coordinates(optimizer, model)
    biases = torch.optim.SGD([model[0].bias], 0.1)
    with pytest.raises(ValueError, match="got none of the weights of the model's layers, expected"):
        in_neuron_coordinates(biases, model)
    other = torchnorm.optim.bnp(torch.optim.SGD(model.parameters(), 0.1), model)
    with pytest.raises(ValueError, match="optimizer: got one with bnp already, expected another"):
        in_neuron_coordinates(other, model)
    replaced = torch.optim.SGD(model.parameters(), 0.1)
    replaced.step = lambda: None
    with pytest.raises(ValueError, match=r"got one whose step\(\) was replaced, expected that of"):
        in_neuron_coordinates(replaced, model)


def test_a_step_without_statistics_is_told():
    """Eval mode, and a second step with the same gradients: nothing was gathered."""
    model = network()
    optimizer = adam(model)
    train(model, optimizer, 1)
    before = values(model)
    with pytest.raises(ValueError, match="got none for '0' since the last step, expected those of"):
        optimizer.step()
    model.eval()
    with pytest.raises(
        ValueError, match=r"call model.train\(\) \(or make it with record_in_eval=True\)"
    ):
        train(model, optimizer, 1)
    assert same(values(model), before)


@pytest.mark.parametrize("way", ["inputs", "grad"])
def test_backward_passes_that_leave_statistics_out_are_told(way):
    model = network()
    optimizer, parameters = adam(model), list(model.parameters())
    if way == "inputs":
        loss(model, *data()).backward(inputs=parameters)
    else:
        grads = torch.autograd.grad(loss(model, *data()), parameters)
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
    with pytest.raises(ValueError, match=r"without inputs= and not torch\.autograd\.grad, which"):
        optimizer.step()
    train(model, optimizer, 1)


@pytest.fixture
def one_process():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:FSDP is switching")
@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("tool", [in_neuron_coordinates, torchnorm.optim.bnp])
def test_flattened_parameters_are_refused(original, inside, tool):
    """Those of FSDP1."""
    model = network()
    cpu = torch.device("cpu")
    wrapped = FullyShardedDataParallel(model, use_orig_params=original, device_id=cpu)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.01)
    match = (
        r"got one in FullyShardedDataParallel.*shard it with torch\.distributed\.fsdp\.fully_sha"
    )
    with pytest.raises(ValueError, match=match):
        tool(optimizer, nn.ModuleList([model]) if inside and original else wrapped)


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:FSDP is switching")
def test_parameters_that_are_flattened_later():
    """And the remedy: sharded by fully_shard, after which the optimizer is made."""
    model, other = network(), network()
    optimizer = sgd(model)
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    before = values(model)
    with pytest.raises(ValueError, match="got one in FullyShardedDataParallel"):
        train(wrapped, optimizer, 1)
    assert same(values(model), before)
    sharded = network()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(sharded, mesh=mesh)
    train(sharded, sgd(sharded), 2)
    found = [p.full_tensor().detach() for p in sharded.parameters()]
    assert error(found, train(other, sgd(other), 2)) <= SAME_STEPS


@pytest.mark.usefixtures("one_process")
def test_a_sharded_module_that_multiplies_itself():
    """Its whole weight is there only inside of its call."""

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x @ self.weight + self.bias

    x = torch.randn(8, 3)
    model = nn.Sequential(Written(), nn.Tanh())
    torchnorm.convert(model, x)
    plain = copy.deepcopy(model)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    for each in (model, plain):
        optimizer = sgd(each)
        each(x).square().sum().backward()
        optimizer.step()
    for sharded, whole in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(sharded.full_tensor().detach(), whole)


def test_copies_on_several_devices_are_refused():
    model = network()
    parallel = nn.DataParallel(model)
    in_neuron_coordinates(torch.optim.SGD(model.parameters(), 0.1), parallel)
    parallel.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"got DataParallel.*DistributedDataParallel"):
        in_neuron_coordinates(torch.optim.SGD(model.parameters(), 0.1), parallel)
