"""What `in_neuron_coordinates` must survive: closures, schedulers, hooks, scalers, freezing."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import torchnorm
from parity_tests.tolerances import LOCK_STEP, SAME_STEP, SAME_STEPS, SINGLE, VISIBLE
from torchnorm import Rule
from torchnorm.optim import in_neuron_coordinates
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

optim = torch.optim


# --- Around the step ------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", [False, True])
def test_closures(keyword):
    """Evaluated once, with gradients on; the loss comes back."""
    model, other = network(), network()
    optimizer, calls = adam(model), []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        calls.append(loss(model, *data()))
        calls[-1].backward()
        return calls[-1]

    for _ in range(2):
        with torch.no_grad():
            found = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert found is calls[-1]
    assert len(calls) == 2
    assert same(values(model), train(other, adam(other), 2))


@pytest.mark.parametrize("before", [True, False])
def test_schedulers_made_before_and_after(before):
    """Its own warning tells a scheduler whose count of steps was lost; warnings are errors here."""
    model, other = network(), network()
    inner = optim.Adam(model.parameters(), 0.03)
    optimizer = inner if before else in_neuron_coordinates(inner, model)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    if before:
        assert in_neuron_coordinates(inner, model) is inner
    expected = adam(other)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step()
        train(other, expected, 1)
        expected.param_groups[0]["lr"] *= 0.5
    assert same(values(model), values(other))
    assert error(values(model), values(network())) > VISIBLE


def test_hooks_run_once_and_see_parameters():
    """Not the coordinates; also after load_state_dict, which patches `step` anew."""
    model = network()
    optimizer = sgd(model)
    optimizer.load_state_dict(optimizer.state_dict())
    seen = []
    see = lambda *_: seen.append(values(model))  # noqa: E731
    handles = [
        optimizer.register_step_pre_hook(see),
        optimizer.register_step_post_hook(see),
        register_optimizer_step_pre_hook(see),
        register_optimizer_step_post_hook(see),
    ]
    before = values(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        after = train(model, optimizer, 1)
    for handle in handles:
        handle.remove()
    assert [same(each, before) for each in seen] == [True, True, False, False]
    assert [same(each, after) for each in seen] == [False, False, True, True]
    names = [event.name for event in profile.events()]
    assert names.count("Optimizer.step#SGD.step") == 1
    assert names.count("Optimizer.zero_grad#SGD.zero_grad") == 1


class Fails(optim.SGD):
    """Half-way, once."""

    failed = False

    def step(self, closure=None):
        """Spoil the first parameter, then raise."""
        if self.failed:
            return super().step(closure)
        self.failed = True
        self.param_groups[0]["params"][0].fill_(7)
        self.param_groups[0]["params"][1].grad.fill_(7)
        raise KeyboardInterrupt


def test_a_step_that_raises_changes_nothing():
    """Parameters, gradients, statistics and what was gathered: another step is as the first."""
    model, whole = network(Rule(decay=0.5)), network(Rule(decay=0.5))
    optimizer = in_neuron_coordinates(Fails(model.parameters(), 0.01), model)
    loss(model, *data()).backward()
    before = values(model)
    grads = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert same(values(model), before)
    assert same([p.grad for p in model.parameters()], grads)
    optimizer.step()
    # (It cannot be tried, so its step is made with the parameters and subtracted from them.)
    assert error(values(model), train(whole, sgd(whole), 1)) <= SAME_STEPS


# --- Gradients that are dropped -------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("zero", ["optimizer", "model", "to zeros"])
def test_grad_scaler_skips_a_step(zero, fused):
    """Nothing of the batch that overflowed is in the next step."""
    x, y = data()
    model, other = network(Rule(decay=0.5)), network(Rule(decay=0.5))
    optimizer, expected = adam(model, fused=fused), adam(other)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    for k in range(3):
        factor = torch.tensor(torch.inf if k == 1 else 1.0, dtype=x.dtype)
        before = values(model)
        scaler.scale(loss(model, x, y) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        if zero == "model":
            model.zero_grad()
        else:
            optimizer.zero_grad(set_to_none=zero == "optimizer")
        if k == 1:
            assert same(values(model), before)
    train(other, expected, 2)
    assert error(values(model), values(other)) <= LOCK_STEP
    assert scaler.get_scale() == 2.0**19


@pytest.mark.parametrize("fused", [False, True])
def test_the_first_step_is_skipped(fused):
    """Before there are any statistics: nothing is changed, and nothing is told as an error."""
    x, y = data()
    model, other = network(Rule(decay=0.5)), network(Rule(decay=0.5))
    optimizer = adam(model, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss(model, 1e200 * x, y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert same(values(model), values(other))
    assert error(train(model, optimizer, 2), train(other, adam(other), 2)) <= SAME_STEPS


def test_the_models_zero_grad_drops_statistics_too():
    """At the next forward pass; and not those of the batch that the gradients are of."""
    x, y = data()
    model, other = network(), network()
    optimizer, expected = adam(model), adam(other)
    for _ in range(2):
        loss(model, 10 * x + 1, y).backward()
        model.zero_grad()
        loss(model, x[:10], y[:10]).backward()
        loss(model, x[10:], y[10:]).backward()
        optimizer.step()
        model.zero_grad()
        loss(other, x, y).backward()
        expected.step()
        expected.zero_grad()
    assert error(values(model), values(other)) <= SAME_STEP


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_both_ways_and_a_layer_that_is_not_called(to_none):
    """It has no gradient, or one of zeros, and stays as it is or goes on by its momentum."""
    x, y = data()

    def run(model, make, zero):
        model = nn.ModuleList([model, network()])
        optimizer = make(model)
        result = []
        for which in (0, 1, 0):
            loss(model[which], x, y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=zero)
            result.append(values(model))
        return result

    found = run(network(), lambda model: sgd(model, momentum=0.9), to_none)
    assert same(found[0][4:], values(network()))
    assert same(found[1][:4], found[0][:4]) == to_none
    assert not same(found[1][4:], found[0][4:])
    assert not same(found[2][:4], found[1][:4])
    fresh = network()
    assert same(found[1][4:], train(fresh, sgd(fresh, momentum=0.9), 1))


def test_gradients_of_zero_before_the_first_batch():
    """So PyTorch makes the state of an optimizer before it loads a sharded one."""
    model, other = network(), network()
    optimizer = adam(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert same(values(model), values(other))
    assert model[0].neuron_stats.count == 0
    assert len(optimizer.state) == 4


def test_toggling_requires_grad():
    """A frozen weight stays, statistics and all; then the layer goes on as if nothing had been."""
    model = network(Rule(decay=0.5))
    optimizer = sgd(model)
    train(model, optimizer, 1)
    before = values(model)
    model[0].requires_grad_(False)
    train(model, optimizer, 2)
    assert same(values(model)[:2], before[:2])
    assert not torch.equal(values(model)[2], before[2])
    assert model[0].neuron_stats.count == 1
    model[0].requires_grad_(True)
    train(model, optimizer, 1)
    assert model[0].neuron_stats.count == 2
    assert not torch.equal(values(model)[0], before[0])


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_frozen_bias_has_second_moments_about_zero(decay):
    models = [network(Rule(decay=decay)), network(Rule(decay=decay))]
    models[0][0].bias.requires_grad_(False)
    rest = [p for n, p in models[1].named_parameters() if n != "0.bias"]
    optimizers = sgd(models[0]), in_neuron_coordinates(optim.SGD(rest, 0.01), models[1])
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 2)
    assert same(values(models[0]), values(models[1]))
    whole = network(Rule(decay=decay))
    assert error(train(whole, sgd(whole), 2)[:1], values(models[0])[:1]) > 1e-3


def test_eval_mode_and_no_grad_leave_no_trace():
    model, other = network(), network()
    optimizer, expected = adam(model), adam(other)
    for _ in range(2):
        train(model, optimizer, 1)
        model.eval()
        loss(model, 100 * data()[0], data()[1]).backward()
        model.train()
        optimizer.zero_grad()
        with torch.no_grad():
            model(100 * data()[0])
        train(other, expected, 1)
    assert same(values(model), values(other))


def test_eval_mode_records_on_request():
    """As in train mode: a model of the same layers in neither."""
    model, other = network(), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    optimizer = in_neuron_coordinates(optimizer, model, record_in_eval=True)
    expected = in_neuron_coordinates(torch.optim.Adam(other.parameters(), lr=0.1), other)
    model.eval()
    model, optimizer = copy.deepcopy((model, optimizer))
    train(model, optimizer, 2)
    train(other, expected, 2)
    assert same(values(model), values(other))
    with torch.no_grad():
        model(100 * data()[0])
    assert model[0].neuron_stats.gathered() is None


def test_second_derivatives_are_the_frameworks():
    """A gradient penalty trains as ever, and its statistics are there."""
    model, reference = network(Rule(weighting="uniform")), network(kind=nn.Linear)
    other = network(Rule(weighting="uniform"))
    optimizer = sgd(model)
    x, y = data()
    grads = []
    for each in (model, reference):
        at = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(each, at, y), at, create_graph=True)
        (g**2).sum().backward()
        grads.append([p.grad for p in each.parameters()])
    assert error(*grads) <= SAME_STEP
    expected = sgd(other)
    loss(other, x, y).backward()
    for p, g in zip(other.parameters(), grads[1], strict=True):
        p.grad = g
    optimizer.step()
    expected.step()
    assert error(values(model), values(other)) <= SAME_STEP


def _jacobian(model, x):
    return torch.vmap(torch.func.jacfwd(model))(x)


def _along_the_parameters(model, x):
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def call(each):
        return torch.func.functional_call(model, each, (x,))

    return torch.func.jvp(call, (parameters,), (parameters,))[1]


def _hessian(model, x):
    return torch.vmap(torch.func.hessian(lambda row: model(row).sum()))(x)


@pytest.mark.parametrize("take", [_jacobian, _along_the_parameters, _hessian])
def test_forward_mode_is_the_frameworks(take):
    model, reference = network(), network(kind=nn.Linear)
    optimizer = sgd(model)
    x, _ = data()
    found, expected = (take(each, x).detach() for each in (model, reference))
    assert model[0].neuron_stats is not None
    assert error([found], [expected]) <= SAME_STEP
    train(model, optimizer, 1)


def test_forward_mode_with_a_handle():
    layer = torchnorm.Linear(5, 3, gate=torchnorm.DEFERRED, dtype=torch.float64)
    optimizer = in_neuron_coordinates(optim.SGD(layer.parameters(), 0.1), layer)
    x, _ = data()
    (_, handle), (found, none) = torch.func.jvp(layer, (x,), (x,))
    assert error([found.detach()], [(x @ layer.weight.T).detach()]) <= SAME_STEP
    assert not none.any()
    assert none.shape == handle.shape
    del optimizer


def test_a_transform_inside_a_compiled_function():
    """It runs uncompiled: compiled, its backward pass would be dropped."""
    found = []
    x, y = data(dtype=torch.float32)
    for compiled in (False, True):
        model = network(dtype=torch.float32)
        optimizer = sgd(model)
        mapped = torch.vmap(model)
        mapped = torch.compile(mapped, backend="eager") if compiled else mapped
        ((mapped(x) - y) ** 2).mean().backward()
        optimizer.step()
        found.append(values(model))
    assert error(*found) <= SINGLE


# --- Precision and place --------------------------------------------------------------------------


def test_autocast_around_both_passes():
    """The sums are of the inputs in float32, even if autocast is around the backward pass."""
    x, y = data(dtype=torch.float32)
    found = []
    for around_backward in (False, True):
        model = network(dtype=torch.float32)
        optimizer = sgd(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = loss(model, x, y)
            if around_backward:
                out.backward()
        if not around_backward:
            out.backward()
        gathered = model[0].neuron_stats.gathered()
        assert all(value.dtype == torch.float32 for value in gathered.present().values())
        exact = (x**2).sum(0)
        assert (gathered.layer_second[0] - exact).abs().max() <= SINGLE * exact.max()
        found.append(gathered.second)
        del optimizer
    assert error([found[1]], [found[0]]) <= SINGLE


@pytest.mark.parametrize("cast", [torch.float64, torch.bfloat16])
def test_moving_a_model_between_the_passes(cast):
    """Statistics move along, what was gathered too, never below float32."""
    model = network(Rule(decay=0.5), torch.float32)
    optimizer = sgd(model)
    train(model, optimizer, 2, data(dtype=torch.float32))
    loss(model, *data(dtype=torch.float32)).backward()
    before = values(model)
    stats = model[0].neuron_stats.gathered().map(torch.clone)
    model.to(cast)
    wide = torch.promote_types(cast, torch.float32)
    after = model[0].neuron_stats.gathered()
    assert {value.dtype for value in after.present().values()} == {wide}
    assert same(after.map(torch.Tensor.float), stats)
    optimizer.step()
    train(model, optimizer, 2, data(dtype=cast))
    assert all(p.dtype == cast and p.isfinite().all() for p in model.parameters())
    assert model[0].neuron_stats.count == 5
    assert not same([p.to(before[0].dtype) for p in values(model)], before)
