"""Which optimizers `in_neuron_coordinates` refuses, and that what the refusals advise works."""

import copy

import pytest
import torch
from torch import optim

import torchnorm
from torchnorm.optim import in_neuron_coordinates
from torchnorm.tests.optim.nets import adam, data, loss, network, same, sgd, train, values


class Keeps(optim.SGD):
    """Plain steps; and something is kept in the state."""

    def __init__(self, params, lr=0.01, keep=None, **kwargs):
        self.keep = keep
        super().__init__(params, lr, **kwargs)

    @torch.no_grad()
    def step(self, closure=None):
        """Those of SGD."""
        before = [p.clone() for group in self.param_groups for p in group["params"]]
        for group in self.param_groups:
            super().step.__wrapped__(self)
            for p, first in zip(group["params"], before, strict=True):
                self.keep(group, self.state[p], p, first)


def dog(group, state, p, first):
    """The first parameters: DoG, DoWG, D-adaptation."""
    state.setdefault("initial", first)


def in_the_group(group, state, p, first):
    """The first parameters, in a list beside them."""
    if len(group.setdefault("init_buffer", [])) < len(group["params"]):
        group["init_buffer"].append(first)


def prodigy(group, state, p, first):
    """Every third of the first parameters."""
    state.setdefault("p0", first.flatten()[::3].clone())


def average(group, state, p, first):
    """An average of them, that begins where they are after the first step (ASGD)."""
    state["ax"] = torch.lerp(state.get("ax", p), p, 0.1)


def schedule_free(group, state, p, first):
    """The sequence of the plain steps, ten times as long."""
    state["z"] = state.get("z", first) - 0.1 * p.grad


def master(group, state, p, first):
    """In single precision."""
    state["master"] = p.float()


KEEPS = [dog, in_the_group, prodigy, average, schedule_free, master]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_what_keeps_parameters_is_refused_in_its_first_step(keep, weight_decay):
    model, reference = network(), network()
    optimizer = Keeps(model.parameters(), keep=keep, weight_decay=weight_decay)
    train(reference, Keeps(reference.parameters(), keep=keep), 2)  # trains plainly
    optimizer = in_neuron_coordinates(optimizer, model)
    before = values(model)
    with pytest.raises(ValueError, match="got Keeps, expected one that needs gradients only; it"):
        train(model, optimizer, 1)
    assert same(values(model), before)


def momentum(group, state, p, first):
    """Of gradients, with the parameters in them as far as they decay."""
    state["momentum"] = p.grad + group["weight_decay"] * first


def second(group, state, p, first):
    """Squares, a step, what fits nowhere, and zeros."""
    state.update(square=p.grad**2, step=p - first, rows=p.grad.sum(-1), zeros=torch.zeros_like(p))
    state.update(count=torch.zeros(()), none=None, empty=torch.zeros(0))
    state["elsewhere"] = torch.zeros(1, device="meta")  # as Adam's steps are, on an accelerator


@pytest.mark.parametrize("keep", [momentum, second])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_what_keeps_gradients_is_taken(keep, weight_decay):
    model, other = network(), network()
    optimizer = Keeps(model.parameters(), keep=keep, weight_decay=weight_decay)
    found = train(model, in_neuron_coordinates(optimizer, model), 3)
    assert same(found, train(other, sgd(other, weight_decay=weight_decay), 3))


def test_weights_that_are_tiny_in_the_coordinates_are_no_state():
    """Beside them the roundings of a state that is a gradient are large."""
    torch.manual_seed(0)
    layer = torchnorm.Conv1d(4, 4, 3, gate=None)
    optimizer = in_neuron_coordinates(optim.Adam(layer.parameters(), 0.05), layer)
    for _ in range(2):
        optimizer.zero_grad()
        (
            layer(1e-10 * torch.randn(16, 4, 8)).mean((1, 2)) - torch.randn(16)
        ).square().mean().backward()
        optimizer.step()


class AdamWScheduleFree(optim.SGD):
    """Of a package that is not here."""


class ScheduleFreeSGD(optim.SGD):
    """Of another."""


class DoWG(optim.SGD):
    """Likewise."""


class DoG(optim.SGD):
    """Likewise."""


class Mine(optim.ASGD):
    """A subclass is what its base is."""


class Switching(optim.SGD):
    """Has parameters for training and others for evaluation."""

    def eval(self):
        """Take those for evaluation."""


class Search(optim.SGD):
    """Evaluates the loss again and again."""

    def step(self, closure):
        """With a closure only."""


class Ascends(optim.SGD):
    """In two steps."""

    def first_step(self):
        """Up."""

    def second_step(self):
        """Back and down."""


AVERAGE = r"it keeps parameters.*swa_utils.AveragedModel for an average"
EVALUATES = "it evaluates the loss at parameters of its own, and those are not in the coordinates"


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        (optim.LBFGS, "LBFGS", EVALUATES),
        (Search, "Search", EVALUATES),
        (Ascends, "Ascends", EVALUATES),
        (optim.ASGD, "ASGD", AVERAGE),
        (Mine, "ASGD", AVERAGE),
        (AdamWScheduleFree, "AdamWScheduleFree", AVERAGE),
        (ScheduleFreeSGD, "ScheduleFreeSGD", AVERAGE),
        (DoG, "DoG", AVERAGE),
        (DoWG, "DoWG", AVERAGE),
        (Switching, "Switching", AVERAGE),
    ],
)
def test_what_is_known_before_the_first_step(kind, name, why):
    model = network()
    match = f"optimizer: got {name}, expected one that needs gradients only; {why}"
    with pytest.raises(ValueError, match=match):
        in_neuron_coordinates(kind(model.parameters(), lr=0.1), model)
    assert model[0].neuron_stats is None


# --- Optimizers around another --------------------------------------------------------------------


class Lookahead(optim.Optimizer):
    """Every second step half-way back to where it was before it."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]

    def zero_grad(self):
        """The inner one's."""
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        """The inner one's, and the average."""
        self.optimizer.step()
        self.steps += 1
        if self.steps % 2 == 0:
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)


class SAM(optim.Optimizer):
    """The gradient at parameters a step up, by an optimizer that it makes itself."""

    def __init__(self, params, base, rho, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure):
        """Up, and from where it was down."""
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in params]
        for p in params:
            p.add_(self.param_groups[0]["rho"] * p.grad)
        with torch.enable_grad():
            self.zero_grad()
            closure().backward()
        for p, value in zip(params, before, strict=True):
            p.copy_(value)
        self.base_optimizer.step()


def tools():
    """All that take an optimizer and a model."""
    names = ("in_neuron_coordinates", "bnp", "quasi_diagonal", "centralize")
    found = [(name, getattr(torchnorm.optim, name)) for name in names]
    return [*found, ("remove", lambda optimizer, _: torchnorm.optim.remove(optimizer))]


@pytest.mark.parametrize(("name", "tool"), tools())
def test_optimizers_around_another_are_refused(name, tool):
    model = network()
    outer = Lookahead(optim.SGD(model.parameters(), 0.1))
    match = rf"got Lookahead, which runs the optimizer that it has as .optimizer.*call {name} with"
    with pytest.raises(ValueError, match=match):
        tool(outer, model)
    outer.optimizers = {"weights": outer.optimizer}
    del outer.optimizer
    with pytest.raises(ValueError, match=r"that it has as \.optimizers"):
        tool(outer, model)


def test_a_wrapper_around_coordinates():
    """Its averages are of the original parameters."""
    model, other = network(), network()
    optimizer, expected = Lookahead(adam(model)), adam(other)
    slow = values(other)
    for _ in range(2):
        train(model, optimizer, 2)
        fast = train(other, expected, 2)
        slow = [torch.lerp(a, b, 0.5) for a, b in zip(slow, fast, strict=True)]
        with torch.no_grad():
            for p, value in zip(other.parameters(), slow, strict=True):
                p.copy_(value)
    assert same(values(model), values(other))


def test_the_optimizer_that_a_wrapper_has_made():
    """The gradient and the statistics are both those of the parameters a step up."""
    x, y = data()
    model, other = network(), network()
    outer = SAM(model.parameters(), optim.SGD, rho=1e-3, lr=0.01)
    in_neuron_coordinates(outer.base_optimizer, model)
    expected = sgd(other)
    for _ in range(2):
        outer.zero_grad()
        loss(model, x, y).backward()
        outer.step(lambda: loss(model, x, y))
        before = values(other)
        expected.zero_grad()
        loss(other, x, y).backward()
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1e-3 * p.grad)
        expected.zero_grad()
        loss(other, x, y).backward()
        with torch.no_grad():
            for p, value in zip(other.parameters(), before, strict=True):
                p.copy_(value)
        expected.step()
    assert same(values(model), values(other))
    assert not same(values(model), train(network(), sgd(network()), 2))


def test_accelerate():
    """Coordinates first, then `prepare`."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, other = network(), network()
    prepared = accelerator.prepare(optim.Adam(model.parameters(), 0.03))
    with pytest.raises(ValueError, match=r"got AcceleratedOptimizer.*\(accelerator\.prepare"):
        in_neuron_coordinates(prepared, model)
    model, optimizer = accelerator.prepare(model, adam(model))
    assert same(train(model, optimizer, 3), train(other, adam(other), 3))
    state = copy.deepcopy(optimizer.state_dict())
    assert "neuron_stats" in state
    optimizer.load_state_dict(state)


def test_lightning():
    """Its wrapper is a subclass of what it wraps, made at run time as ours is."""
    lightning = pytest.importorskip("lightning.pytorch.core.optimizer")
    model, other = network(), network()
    wrapper = lightning.LightningOptimizer
    with pytest.raises(ValueError, match="got LightningAdam, which runs the optimizer that it has"):
        in_neuron_coordinates(wrapper(optim.Adam(model.parameters(), 0.03)), model)
    inner = adam(model)
    outer = wrapper(inner)
    assert isinstance(outer, optim.Adam)
    expected = adam(other)
    train(other, expected, 1)
    train(model, inner, 1)
    assert "neuron_stats" in outer.state_dict()
    assert same(train(model, inner, 1), train(other, expected, 1))


def test_shards_of_an_optimizer_are_refused():
    kind = type("ZeroRedundancyOptimizer", (optim.SGD,), {})
    model = network()
    with pytest.raises(ValueError, match=r"got ZeroRedundancyOptimizer.*fsdp\.fully_shard"):
        in_neuron_coordinates(kind(model.parameters(), 0.1), model)


def clipped_by_value(parameters):
    torch.nn.utils.clip_grad_value_(parameters, 1e-3)


def clipped_by_norm(parameters):
    torch.nn.utils.clip_grad_norm_(parameters, 1e-3)


def test_gradients_that_are_clipped_by_value_are_warned_of():
    """Entry by entry: their mean is not what the coordinates take away."""
    model = network()
    optimizer = sgd(model)
    loss(model, *data()).backward()
    clipped_by_value(model.parameters())
    with pytest.warns(UserWarning, match="largest entries are 0.001 in several"):
        optimizer.step()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", [clipped_by_norm, list])
def test_others_are_not(change):
    model = network()
    optimizer = sgd(model)
    loss(model, *data()).backward()
    change(model.parameters())
    optimizer.step()
