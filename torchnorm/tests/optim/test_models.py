"""`in_neuron_coordinates` on models that are compiled, checkpointed, converted, or call twice."""

import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.tolerances import SAME_STEPS
from torchnorm import Rule
from torchnorm.tests.optim.nets import adam, data, error, network, same, sgd, train
from torchnorm.tests.versions import WHOLE_GRAPHS

optim = torch.optim


class Checkpointed(nn.Module):
    """Recomputes everything in the backward pass."""

    def __init__(self, model, reentrant):
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x):
        """The model's, in two parts."""
        x = checkpoint(self.model[:2], x, use_reentrant=self.reentrant)
        return checkpoint(self.model[2], x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    x, y = data()
    plain, model = network(), network()
    expected = train(plain, adam(plain), 2, (x.clone().requires_grad_(), y))
    wrapped = Checkpointed(model, reentrant)
    assert same(train(wrapped, adam(wrapped), 2, (x.clone().requires_grad_(), y)), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(("every", "first"), [(1, "compiled"), (2, "wrapped")])
@WHOLE_GRAPHS
def test_compile(every, first, monkeypatch):
    """The model; no step compiles anew, but the first that takes no statistics."""
    monkeypatch.setattr(
        "torchnorm.modules.neuron_stats.is_due", lambda step, age, every: age >= every
    )
    torch.compiler.reset()
    backend = CompileCounterWithBackend("aot_eager")
    plain, model = network(Rule(statistics_every=every)), network(Rule(statistics_every=every))
    if first == "compiled":
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        compiled(data()[0])
        optimizer = adam(compiled)
    else:
        optimizer = adam(model)
        compiled = torch.compile(model, backend=backend, fullgraph=True)
    counts, expected = [], adam(plain)
    for _ in range(6):
        found = train(compiled, optimizer, 1)
        assert error(found, train(plain, expected, 1)) <= SAME_STEPS
        counts.append(backend.frame_count)
    assert list(optimizer.state_dict()["neuron_stats"]) == ["0", "2"]
    assert len(set(counts)) == every


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@WHOLE_GRAPHS
def test_a_compiled_model_that_loses_its_optimizer():
    """It is compiled anew without statistics; another optimizer's are other inputs of one graph."""
    torch.compiler.reset()
    backend = CompileCounterWithBackend("aot_eager")
    model, other = network(), network()
    compiled, counts = torch.compile(model, backend=backend, fullgraph=True), []
    for make in (adam, None, sgd, adam):
        pair = []
        for each in (compiled, other):
            parameters = each.parameters()
            optimizer = optim.SGD(parameters, 0.01) if make is None else make(each)
            pair.append(train(each, optimizer, 2))
            del optimizer
        assert error(*pair) <= SAME_STEPS
        counts.append(backend.frame_count)
    assert counts == [counts[0], *[counts[1]] * 3]


def test_names_are_of_the_model_without_wrappers():
    """But not those of the model's own that look like it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torchnorm.Linear(4, 4, gate=None)
            self.module = nn.ModuleDict({"fc": torchnorm.Linear(4, 4, gate=None)})

    model = torch.compile(Net(), backend="eager")
    assert list(adam(model).state_dict()["neuron_stats"]) == ["fc", "module.fc"]


class Shared(nn.Module):
    """One layer, called twice."""

    def __init__(self, split):
        super().__init__()
        self.model, self.split = network(), split

    def forward(self, x):
        """On the halves of the batch, or on all of it."""
        if not self.split:
            return self.model(x)
        return torch.cat([self.model(x[:7]), self.model(x[7:])])


def test_a_layer_that_is_called_twice():
    one, two = Shared(False), Shared(True)
    assert error(train(two, adam(two), 3), train(one, adam(one), 3)) <= SAME_STEPS


def converted():
    """Conv-BatchNorm-ReLU, whose gate is deferred, and a dense layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    return model, (
        torch.randn(8, 2, 6, 6, dtype=torch.float64),
        torch.zeros((), dtype=torch.float64),
    )


def test_converted_models_with_deferred_gates():
    """With SGD a step is that of the stateless form, behind the BatchNorm's slopes."""
    (model, given), (stateless, _) = converted(), converted()
    report = torchnorm.convert(model, given[0], rule=Rule(statistics_every=1))
    assert len(report.deferred) == 2
    torchnorm.convert(stateless, given[0], rule=Rule(gradient="preconditioned"))
    expected = train(stateless, optim.SGD(stateless.parameters(), 0.01), 2, given)
    optimizer = sgd(model)
    assert error(train(model, optimizer, 2, given), expected) <= SAME_STEPS
    assert model[0].neuron_stats.read().mass is not None
    train(model, adam(model), 2, given)


def test_gpt2_trains():
    """Its Conv1D keeps weights as [I, O], shares one, and puts dropout in between."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=11, n_positions=8, attn_implementation="eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.GPT2LMHeadModel(config)
        ids = torch.randint(0, 11, (4, 8))
        torchnorm.convert(model, {"input_ids": ids})
        optimizer = adam(model, 0.003)
        head = model.lm_head.weight
        assert head is model.transformer.wte.weight
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            losses.append(model(input_ids=ids, labels=ids).loss)
            losses[-1].backward()
            optimizer.step()
    names = optimizer.state_dict()["neuron_stats"]
    assert "transformer.h.0.mlp.c_fc" in names
    assert names["transformer.h.0.mlp.c_fc"]["first"].shape == (64, 16)
    assert losses[-1] < 0.9 * losses[0]
