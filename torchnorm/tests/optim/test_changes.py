"""What happens to the model after the optimizer was made: new layers, other weights, averages."""

import warnings

import pytest
import torch
from torch import nn, optim
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchnorm
from parity_tests.tolerances import SAME_STEPS, VISIBLE
from torchnorm import Rule
from torchnorm.optim import bnp, in_neuron_coordinates, quasi_diagonal
from torchnorm.tests.optim.nets import adam, data, error, loss, network, same, sgd, train, values

optimizers = pytest.mark.parametrize("make", [adam, sgd])


# --- Statistics are not the model's -------------------------------------------------------------


def normed():
    """With BatchNorm, whose buffers are averaged, copied and broadcast."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(5), *network(), nn.BatchNorm1d(3)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("first", ["average", "optimizer"])
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
def test_averaged_models(use_buffers, first, average):
    """They pair buffers by their position."""

    def run(coordinates):
        model, found = normed(), []
        if first == "average":
            averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=use_buffers)
        optimizer = (sgd if coordinates else lambda m: optim.SGD(m.parameters(), 0.0))(model)
        if first == "optimizer":
            averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=use_buffers)
        for _ in range(3):
            train(model, optimizer, 1)
            averaged.update_parameters(model)
            found.append(values(model))
        return model, averaged, found

    model, averaged, found = run(True)
    for k, p in enumerate(averaged.module.parameters()):
        expected = [each[k] for each in found]
        if average is None:
            assert torch.allclose(p, sum(expected) / 3)
    plain, plain_averaged, _ = run(False)
    first_of = [next(each.module.buffers()) for each in (averaged, plain_averaged)]
    assert torch.equal(*first_of)
    assert len(list(model.buffers())) == len(list(plain.buffers())) == 6
    averaged(data()[0]).sum().backward()
    assert not any(getattr(m, "neuron_stats", None) for m in averaged.modules())


@optimizers
def test_who_walks_through_the_model_sees_none(make):
    model, plain = normed(), normed()
    optimizer = make(model)
    train(model, optimizer, 1)
    for what in ("modules", "children", "buffers", "parameters"):
        assert len(list(getattr(model, what)())) == len(list(getattr(plain, what)()))
    for what in ("named_buffers", "named_modules", "named_parameters"):
        assert dict(getattr(model, what)()).keys() == dict(getattr(plain, what)()).keys()
    state = model.state_dict()
    plain.load_state_dict(state, strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True, assign=False)
    everything = dict(model.named_parameters()) | dict(model.named_buffers())
    out = torch.func.functional_call(model, everything, (data()[0],))
    assert torch.equal(out, plain(data()[0]))
    model.zero_grad()
    model.requires_grad_(False).requires_grad_(True)
    train(model, optimizer, 1)


def test_empty_and_moved_statistics():
    """`to_empty` leaves in parameters what it finds; statistics stay, and never below float32."""
    model = network(Rule(decay=0.5), torch.float32)
    optimizer = sgd(model)
    train(model, optimizer, 1, data(dtype=torch.float32))
    before = model[0].neuron_stats.read().map(lambda v: v.detach().clone())
    model.half()
    assert same(model[0].neuron_stats.read(), before)
    model.double().float()
    model.to_empty(device="cpu")
    assert same(model[0].neuron_stats.read(), before)
    values_now = model[0].neuron_stats.read().present().values()
    assert all(v.is_leaf and v.requires_grad for v in values_now)
    model.to("meta")
    assert model[0].neuron_stats.read().center.is_meta


def test_a_model_that_is_made_on_meta():
    """Statistics of nothing become zeros."""
    with torch.device("meta"):
        layer = torchnorm.Linear(3, 2, gate=None)
    stats = layer.init_statistics()
    layer.to_empty(device="cpu")
    assert all(not v.is_meta and not v.any() for v in stats.read().present().values())


# --- Layers that come later -----------------------------------------------------------------------


def test_a_head_that_comes_later_is_in_the_coordinates_too():
    """It was not in the model when the optimizer was made."""
    model, other = network(), network()
    optimizer = sgd(model)
    for each, its in ((model, optimizer), (other, None)):
        each.append(nn.SiLU())
        torch.manual_seed(2)
        each.append(torchnorm.Linear(3, 3, gate=None, dtype=torch.float64))
        if its is not None:
            its.add_param_group({"params": each[-1].parameters(), "lr": 0.01})
    assert same(train(model, optimizer, 2), train(other, sgd(other), 2))
    assert list(optimizer.state_dict()["neuron_stats"]) == ["0", "2", "4"]


def test_a_head_that_takes_the_place_of_another():
    model = network()
    optimizer = adam(model)
    train(model, optimizer, 2)
    old = model[2]
    model[2] = torchnorm.Linear(8, 3, gate=None, dtype=torch.float64)
    train(model, optimizer, 1)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    train(model, optimizer, 1)
    assert model[2].neuron_stats.count == 1
    assert old.neuron_stats is None


def test_a_layer_that_another_one_has_taken_the_weight_of():
    """As in training for quantization, which replaces layers."""
    model = network()
    optimizer = adam(model)
    train(model, optimizer, 1)
    other = nn.Linear(5, 8, dtype=torch.float64)
    other.weight, other.bias = model[0].weight, model[0].bias
    model[0] = other
    before = values(model)
    with pytest.raises(ValueError, match="got none for '0', which is not in the model any more"):
        train(model, optimizer, 1)
    assert same(values(model), before)
    model = network(kind=nn.Linear)
    model[2] = torchnorm.Linear(8, 3, gate=None, dtype=torch.float64)
    train(model, adam(model), 1)


def test_layers_of_another_model_are_told():
    """At the beginning, and when they come later; one model of both is what the text advises."""
    model, other = network(), network()
    both = [*model.parameters(), *other.parameters()]
    with pytest.raises(ValueError, match="got the weight of a Linear that is not in the model, ex"):
        in_neuron_coordinates(optim.SGD(both, 0.01), model)
    assert model[0].neuron_stats is None
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=r"torch.nn.ModuleList\(\[model, other\]\)"):
        optimizer.add_param_group({"params": other.parameters()})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer, 1)
    together = in_neuron_coordinates(optim.SGD(both, 0.01), nn.ModuleList([model, other]))
    x, y = data()
    (loss(model, x, y) + loss(other, x, y)).backward()
    together.step()
    assert len(together.state_dict()["neuron_stats"]) == 4


def test_other_parameters_and_plain_layers_are_no_error():
    model, criterion = network(), nn.Linear(3, 3)
    loose = nn.Parameter(torch.zeros(3, 3))
    plain = torchnorm.Linear(3, 3, gate=None, rule=torchnorm.PLAIN)
    rest = [loose, *criterion.parameters(), *plain.parameters()]
    in_neuron_coordinates(optim.SGD([*model.parameters(), *rest], 0.01), model)


def test_an_optimizer_that_has_made_steps_is_told():
    model = network()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match="got one that has made steps, expected one that has made"):
        in_neuron_coordinates(optimizer, model)
    assert model[0].neuron_stats is None


# --- Weights that become others -----------------------------------------------------------------


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, w):
        """Twice the original."""
        return 2 * w


def replaced(layer):
    """Another parameter in the weight's place."""
    layer.weight = nn.Parameter(layer.weight.detach() + 1)


def without_bias(layer):
    """As deleted."""
    layer.bias = None


def deleted_bias(layer):
    """Deleted."""
    del layer.bias
    layer.register_parameter("bias", None)


def another_bias(layer):
    """Another parameter in the bias' place."""
    layer.bias = nn.Parameter(layer.bias.detach() + 1)


def quiet(change):
    """Without what PyTorch says of its older functions."""

    def changed(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(layer)

    return changed


CHANGES = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune the bias": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    "structured": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
    "parametrization": lambda layer: parametrize.register_parametrization(
        layer, "weight", Doubled()
    ),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": quiet(nn.utils.weight_norm),
    "old spectral_norm": quiet(nn.utils.spectral_norm),
    "another weight": replaced,
    "no bias": without_bias,
    "deleted bias": deleted_bias,
    "another bias": another_bias,
}


LEFT_OUT = "got layers whose weight or bias is computed now, or another parameter.*: '0'; they"


@pytest.mark.parametrize("name", CHANGES)
@optimizers
def test_a_layer_whose_parameters_change_is_left_out(name, make):
    """From then on it is stepped as a plain optimizer would, anew; one warning; others go on."""
    model = network()
    optimizer = make(model)
    train(model, optimizer, 2)
    reference = network()
    reference.load_state_dict(model.state_dict())
    for each in (model, reference):
        torch.manual_seed(0)
        CHANGES[name](each[0])
    kind = optim.Adam if make is adam else optim.SGD
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    pairs = zip(model[0].parameters(), reference[0].parameters(), strict=True)
    plain = kind([q for p, q in pairs if id(p) in known], optimizer.param_groups[0]["lr"])
    rest = values(model[2])
    with pytest.warns(UserWarning, match=LEFT_OUT):
        train(model, optimizer, 1)
    loss(reference, *data()).backward()
    plain.step()
    found, expected = values(model[0]), values(reference[0])
    assert same(found, expected)
    assert model[0].neuron_stats is None
    assert model[2].neuron_stats is not None
    assert not same(values(model[2]), rest)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(model, optimizer, 2)
    assert list(optimizer.state_dict()["neuron_stats"]) == ["2"]
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", CHANGES)
def test_a_layer_that_was_so_before_is_left_out(name):
    """As after; a layer whose weight is computed is told."""
    model, reference = network(), network()
    for each in (model, reference):
        torch.manual_seed(0)
        CHANGES[name](each[0])
    weight = model[0]._parameters.get("weight")
    if weight is None:
        with pytest.warns(UserWarning, match="got layers whose weight is computed.*'0'"):
            optimizer = sgd(model)
        train(model, optimizer, 1)
        loss(reference, *data()).backward()
        optim.SGD(reference[0].parameters(), 0.01).step()
        assert same(values(model[0]), values(reference[0]))
    else:
        optimizer = sgd(model)
        train(model, optimizer, 1)
        assert model[0].neuron_stats is not None


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_layers_that_are_tied_later(what):
    """The other one's gradient is of both now, its statistics of itself: it is left out too."""

    def three():
        layers = [torchnorm.Linear(5, 5, gate=None, dtype=torch.float64) for _ in range(2)]
        torch.manual_seed(0)
        for layer in layers:
            layer.reset_parameters()
        return nn.Sequential(*layers, *network())

    model, other = three(), three()
    optimizer = sgd(model)
    for each in (model, other):
        setattr(each[0], what, getattr(each[1], what))
    with pytest.warns(UserWarning, match="another parameter.*: '0', '1'; they"):
        train(model, optimizer, 1)
    loss(other, *data()).backward()
    optim.SGD(other[:2].parameters(), 0.01).step()
    assert same(values(model[:2]), values(other[:2]))
    assert list(optimizer.state_dict()["neuron_stats"]) == ["2", "4"]


def test_a_weight_of_another_shape():
    """Not another parameter: another tensor in it."""
    model = network()
    optimizer = sgd(model)
    train(model, optimizer, 1)
    model[2].weight.data, model[2].bias.data = model[2].weight.data[:2], model[2].bias.data[:2]
    x, y = data()
    with pytest.warns(UserWarning, match="another parameter.*: '2'; they"):
        train(model, optimizer, 1, (x, y[:, :2]))
    train(model, optimizer, 1, (x, y[:, :2]))


def test_two_computed_weights_are_not_one():
    """Each is computed when it is asked for, and may lie where the last one lay."""
    model = network()
    for layer in (model[0], model[2]):
        parametrizations.spectral_norm(layer)
    model.append(torchnorm.Linear(3, 3, gate=None, dtype=torch.float64))
    with pytest.warns(UserWarning, match="'0', '2'"):
        sgd(model)


class LowRank(nn.Module):
    """A weight that is fine-tuned in few directions."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(8, 2, dtype=torch.float64))
        self.down = nn.Parameter(torch.ones(2, 5, dtype=torch.float64))

    def forward(self, w):
        """With the product added."""
        return w + self.up @ self.down


def test_parameters_of_a_parametrization_that_come_later():
    """One warning, and all of them are stepped plainly."""
    model, other = network(), network()
    optimizer = sgd(model)
    for each in (model, other):
        parametrize.register_parametrization(each[0], "weight", LowRank())
    optimizer.add_param_group({"params": model[0].parametrizations.weight[0].parameters()})
    with pytest.warns(UserWarning, match=LEFT_OUT) as told:
        train(model, optimizer, 1)
    assert len(told) == 1
    loss(other, *data()).backward()
    optim.SGD(other[0].parameters(), 0.01).step()
    assert same(values(model[0]), values(other[0]))


def test_pruning_that_is_permanent_at_once():
    """The parameter is the same again: the layer goes on."""
    model, other = network(), network()
    optimizer, expected = sgd(model), sgd(other)
    train(model, optimizer, 1)
    train(other, expected, 1)
    mask = prune.l1_unstructured(model[0], "weight", 0.5).weight_mask
    prune.remove(model[0], "weight")
    with torch.no_grad():
        other[0].weight.mul_(mask)
    train(model, optimizer, 2)
    train(other, expected, 2)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_pruning_that_is_permanent_later():
    """It stays plain: its momentum is."""
    model = network()
    optimizer = adam(model)
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.warns(UserWarning, match="'0'"):
        train(model, optimizer, 1)
    prune.remove(model[0], "weight")
    train(model, optimizer, 1)
    model.append(torchnorm.Linear(3, 3, gate=None, dtype=torch.float64))
    optimizer.add_param_group({"params": model[-1].parameters()})
    train(model, optimizer, 1)
    assert list(optimizer.state_dict()["neuron_stats"]) == ["2", "3"]


def test_another_weight_that_the_optimizer_is_given():
    """In coordinates of its own."""
    model, other = network(), network()
    optimizer = sgd(model)
    train(model, optimizer, 1)
    for each in (model, other):
        each.load_state_dict(network().state_dict())
        replaced(each[0])
    with pytest.warns(UserWarning, match="'0'"):
        train(model, optimizer, 1)
    for each in (model, other):
        with torch.no_grad():
            for p, value in zip(each.parameters(), values(model), strict=True):
                p.copy_(value)
    optimizer.add_param_group({"params": [model[0].weight]})
    assert error(train(model, optimizer, 2), train(other, sgd(other), 2)) <= SAME_STEPS


@pytest.mark.parametrize("tool", [bnp, quasi_diagonal])
@pytest.mark.parametrize("name", CHANGES)
def test_the_published_methods_too(tool, name):
    model = network()
    optimizer = tool(optim.SGD(model.parameters(), 0.01), model)
    train(model, optimizer, 1)
    CHANGES[name](model[0])
    before = values(model[0])
    with pytest.warns(UserWarning, match=LEFT_OUT):
        train(model, optimizer, 1)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for p, value in zip(model[0].parameters(), before, strict=True):
        if id(p) in known:
            assert error([p.detach()], [value - 0.01 * p.grad]) < VISIBLE
    assert list(optimizer.state_dict()[tool.__name__]) == ["2"]
    train(model, optimizer, 1)
