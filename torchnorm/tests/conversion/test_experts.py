"""`torchnorm.convert`: several weights in one parameter, each with the tokens that go to it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests.models.torch import one_thread
from torchnorm.tests.conversion.nets import D

EXPERTS, INPUTS, HIDDEN, TOKENS = 3, 4, 5, 24


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


class Modules(nn.Module):
    """The same mixture with a module for each expert."""

    def __init__(self, weights):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(INPUTS, HIDDEN, dtype=D) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(HIDDEN, INPUTS, dtype=D) for _ in range(EXPERTS))
        with torch.no_grad():
            for k in range(EXPERTS):
                for layers, name in ((self.up, "up"), (self.down, "down")):
                    layers[k].weight.copy_(weights[name][k])
                    layers[k].bias.copy_(weights[f"{name}_bias"][k])

    def forward(self, x, ids):
        """Each token by its expert."""
        out = torch.zeros_like(x)
        for k in range(EXPERTS):
            rows = (ids == k).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, self.down[k](self.up[k](x[rows]).relu()))
        return out


class Fused(nn.Module):
    """All experts in one parameter."""

    def __init__(self, weights, how):
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))
        self.how = how

    def forward(self, x, ids):
        """Each token by its expert."""
        return self.how(self, x, ids)


def one_by_one(self, x, ids):
    """Slices."""
    out = torch.zeros_like(x)
    for k in range(EXPERTS):
        rows = (ids == k).nonzero()[:, 0]
        if len(rows):
            h = F.linear(x[rows], self.up[k], self.up_bias[k]).relu()
            out = out.index_add(0, rows, h @ self.down[k].T + self.down_bias[k])
    return out


def gathered(self, x, ids):
    """A weight for each token."""
    h = torch.bmm(self.up[ids], x[:, :, None]).squeeze(-1)
    h = (h + self.up_bias[ids]).relu()
    return torch.bmm(self.down[ids], h[:, :, None]).squeeze(-1).add_(self.down_bias[ids])


def buffered(product):
    """A buffer of some capacity for each expert, with empty rows."""

    def run(self, x, ids):
        places = torch.zeros(EXPERTS, TOKENS, len(x), dtype=x.dtype)
        for k in range(EXPERTS):
            rows = (ids == k).nonzero()[:, 0]
            places[k, torch.arange(len(rows)), rows] = 1
        buffer = places @ x
        h = (product(buffer, self.up) + self.up_bias[:, None]).relu()
        z = product(h, self.down) + self.down_bias[:, None]
        return torch.einsum("ecn,eci->ni", places, z)

    return run


FUSED = {
    "one by one": one_by_one,
    "gathered": gathered,
    "bmm": buffered(lambda x, w: torch.bmm(x, w.transpose(1, 2))),
    "matmul": buffered(lambda x, w: x @ w.mT),
    "einsum": buffered(lambda x, w: torch.einsum("eni,eoi->eno", x, w)),
}


class Routed(nn.Module):
    """Experts behind a layer."""

    def __init__(self, experts):
        super().__init__()
        torch.manual_seed(2)
        self.before, self.experts = nn.Linear(INPUTS, INPUTS, dtype=D), experts

    def forward(self, x, ids):
        """All of it."""
        return self.experts(self.before(x).tanh(), ids)


def weights():
    """Of all experts."""
    torch.manual_seed(0)
    shapes = {
        "up": (EXPERTS, HIDDEN, INPUTS),
        "up_bias": (EXPERTS, HIDDEN),
        "down": (EXPERTS, INPUTS, HIDDEN),
        "down_bias": (EXPERTS, INPUTS),
    }
    return {name: torch.randn(shape, dtype=D) for name, shape in shapes.items()}


def tokens(experts=EXPERTS):
    """(x, ids)."""
    torch.manual_seed(1)
    x = torch.randn(TOKENS, INPUTS, dtype=D) * torch.tensor([1, 5, 0.1, 1.0]) + 1
    return x, torch.randint(0, experts, (TOKENS,))


def trained(model, batches):
    """The report, and the optimizer, after a step for each batch."""
    report = torchnorm.convert(model, batches[0])
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.SGD(model.parameters(), 1e-2), model
    )
    for batch in batches:
        optimizer.zero_grad()
        model(*batch).square().mean().backward()
        optimizer.step()
    return report, optimizer


@pytest.mark.parametrize("name", FUSED)
def test_experts_in_one_parameter_are_those_in_modules(name):
    model, reference = (
        Routed(Fused(weights(), FUSED[name])),
        Routed(Modules(weights())),
    )
    plain = copy.deepcopy(model)
    batches = [tokens()] * 3
    report = trained(model, batches)[0]
    trained(reference, batches)
    assert [(row.layer, row.gate) for row in report.converted] == [
        ("before", "tanh"),
        ("experts.up", "relu"),
        ("experts.down", None),
    ]
    assert not report.left
    torch.testing.assert_close(model(*tokens()), reference(*tokens()), rtol=1e-9, atol=1e-9)
    fresh = copy.deepcopy(plain)
    torchnorm.convert(fresh, tokens())
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.SGD(fresh.parameters(), 1e-2), fresh
    )
    for each in (fresh, plain):
        each(*tokens()).square().mean().backward()
    for one, other in zip(fresh.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    del optimizer


@pytest.mark.parametrize("name", FUSED)
def test_an_expert_without_tokens_makes_no_step(name):
    model = Routed(Fused(weights(), FUSED[name]))
    before = copy.deepcopy(model.state_dict())
    _, optimizer = trained(model, [tokens(experts=2)])
    for part, moved in enumerate((True, True, False)):
        for key in ("up", "up_bias", "down", "down_bias"):
            same = torch.equal(
                model.state_dict()[f"experts.{key}"][part], before[f"experts.{key}"][part]
            )
            assert same != moved
    skipped = torchnorm.optim.skipped_steps(optimizer)
    assert skipped["experts.up[2]"] == skipped["experts.down[2]"] == 1
    assert skipped["experts.up[0]"] == skipped["before"] == 0
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    assert state["neuron_stats"]["experts.up"]["first"].shape == (EXPERTS, HIDDEN, INPUTS)


@pytest.mark.parametrize("name", FUSED)
def test_padding_that_is_sent_to_an_expert(name):
    """It does not count, whatever the router has made of its place."""
    given = weights()
    given["up_bias"] += 3  # of each token some neuron is active
    model = Routed(Fused(given, FUSED[name]))
    other, (x, ids) = copy.deepcopy(model), tokens()
    mask = torch.arange(TOKENS) % 3 > 0
    optimizers = []
    for each in (model, other):
        torchnorm.convert(each, (x, ids))
        sgd = torch.optim.SGD(each.parameters(), 1e-2)
        optimizers.append(torchnorm.optim.in_neuron_coordinates(sgd, each))
    with torchnorm.neuron_mask(mask):
        out = model(x, ids)
    (out.square().sum(-1) * mask).sum().backward()
    other(x[mask], ids[mask]).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with torchnorm.neuron_mask(mask * 2.0), pytest.raises(ValueError, match="give it those"):
        model(x, ids)


def test_padding_that_is_sent_to_a_module():
    """Its rows are others: an error, and what to do."""
    model, (x, ids) = Modules(weights()), tokens()
    torchnorm.convert(model, (x, ids))
    sgd = torch.optim.SGD(model.parameters(), 1e-2)
    optimizer = torchnorm.optim.in_neuron_coordinates(sgd, model)
    mask = torch.arange(TOKENS) % 3 > 0
    with torchnorm.neuron_mask(mask):
        with pytest.raises(ValueError, match=r"neuron_mask: got shape \(24,\)"):
            model(x, ids)
        rows = ids == 0
        with torchnorm.neuron_mask(mask[rows]):
            model.up[0](x[rows]).sum().backward()
    assert model.up[0].neuron_stats.gathered().samples == (mask & rows).sum()
    del optimizer


@pytest.mark.parametrize("how", ["eager", "batched_mm", "grouped_mm"])
def test_the_mixtures_of_transformers(how):
    transformers = pytest.importorskip("transformers", reason="its models are converted")
    if not hasattr(transformers, "GptOssConfig"):
        pytest.skip("a transformers without GPT-OSS")
    config = transformers.GptOssConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=16,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation=how)
    except TypeError:
        pytest.skip("a transformers without implementations of experts")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    ids = torch.arange(12).reshape(2, 6)
    model.train()
    report = torchnorm.convert(model, {"input_ids": ids})
    assert [row.layer for row in report.left] == ["model.embed_tokens"]
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.SGD(model.parameters(), 1e-3), model
    )
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    state = optimizer.state_dict()["neuron_stats"]
    for name in ("gate_up_proj", "down_proj"):
        found = state[f"model.layers.0.mlp.experts.{name}"]
        assert found["scalars"][:, 0].sum() == 24  # each token goes to two experts
        assert "layer_first" in found  # its bias was found
