"""Recurrent layers step by step: PyTorch's numbers, and each weight's statistics by its gate."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import torchnorm
from parity_tests.tolerances import GATE, slice_error
from torchnorm import Rule, recurrent
from torchnorm.optim import in_neuron_coordinates
from torchnorm.statistics import merging

TIME, BATCH, INPUTS, UNITS = 5, 4, 3, 2
LENGTHS = torch.tensor([3, 5, 1, 4])
LAYERS = {
    "LSTM": ("LSTM", {}),
    "stacked": ("LSTM", {"num_layers": 2, "batch_first": True, "dropout": 0.5}),
    "both ways": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "projected": ("LSTM", {"proj_size": 1, "bidirectional": True}),
    "GRU": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "no bias": ("GRU", {"bias": False}),
    "RNN": ("RNN", {}),
    "relu": ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
}
CELLS = {"LSTMCell": {}, "GRUCell": {}, "RNNCell": {"nonlinearity": "relu"}}


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(name):
    """(ours, recording; its optimizer; PyTorch's with the same parameters)."""
    kind, kwargs = LAYERS.get(name) or (name, CELLS[name])
    ours = getattr(recurrent, kind)(INPUTS, UNITS, **kwargs)
    theirs = getattr(nn, kind)(INPUTS, UNITS, **kwargs)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    optimizer = in_neuron_coordinates(torch.optim.SGD(ours.parameters(), 0.1), ours)
    ours.__dict__["optimizer"] = optimizer  # it records as long as there is one
    return ours, optimizer, theirs


def leaves(out):
    if isinstance(out, PackedSequence):
        return [out.data]
    return (
        [out] if isinstance(out, torch.Tensor) else [leaf for each in out for leaf in leaves(each)]
    )


def assert_same(ours, theirs, *args):
    """Outputs and all gradients to rounding; RNG alike."""
    x = args[0].data if isinstance(args[0], PackedSequence) else args[0]
    results = []
    assert ours.is_seen()
    for module in (ours, theirs):
        torch.manual_seed(1)
        x.grad = None
        module.zero_grad()
        out = leaves(module(*args))
        torch.manual_seed(2)
        sum((o * torch.randn_like(o)).sum() for o in out).backward()
        results.append([*out, *([] if x.grad is None else [x.grad])])
        results[-1] += [p.grad for p in module.parameters()]
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_pytorch(name):
    ours, _, theirs = make(name)
    x = torch.randn(TIME, BATCH, INPUTS, requires_grad=True)
    assert_same(ours, theirs, x)
    batch_first = theirs.batch_first
    lengths = LENGTHS
    for sort in (False, True):
        lengths = lengths.sort(descending=True).values if sort else lengths
        packed = pack_padded_sequence(
            torch.randn(BATCH, TIME, INPUTS), lengths, batch_first=True, enforce_sorted=sort
        )
        assert_same(ours, theirs, packed)
    assert_same(ours, theirs, torch.randn(TIME, INPUTS, requires_grad=True))
    states = [torch.randn_like(s) for s in leaves(theirs(torch.randn(2, 2, INPUTS))[1])]
    state = tuple(states) if len(states) > 1 else states[0]
    assert_same(ours, theirs, torch.randn(2, 2, INPUTS), state)
    assert ours.batch_first is batch_first
    wrong = tuple(s.repeat(1, 2, 1) for s in states)
    for module in (ours, theirs):
        with pytest.raises(RuntimeError, match=r"Expected hidden.* size \("):
            module(torch.randn(2, 2, INPUTS), wrong if len(states) > 1 else wrong[0])
    with torch.no_grad():
        assert all(map(torch.equal, leaves(ours.eval()(x)), leaves(theirs.eval()(x))))


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_those_of_pytorch(name):
    ours, _, theirs = make(name)
    for shape in ((BATCH, INPUTS), (INPUTS,)):
        x = torch.randn(shape, requires_grad=True)
        assert_same(ours, theirs, x)
        state = theirs(x)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        assert_same(ours, theirs, x, state)


def moments(x, s, rule):
    """Of a dense layer with these weights."""
    return torchnorm.neuron_moments(x, s, rule)


def found(product):
    at = merging.moments(product.neuron_stats.gathered())
    return at.mean, at.sigma


def assert_moments(product, x, s):
    mean, sigma = moments(x, s, Rule())
    expected = mean, sigma / sigma.square().mean(1, keepdim=True).sqrt()
    for a, b in zip(found(product), expected, strict=True):
        assert slice_error(a.expand(b.shape), b) <= GATE["float64"]


def sigmoid_slope(z):
    return z.sigmoid() * (1 - z.sigmoid())


def test_slopes_of_an_lstm():
    """Written out: the weights of the samples of all steps, by the gate of each neuron."""
    lstm, *_ = make("LSTM")
    x = torch.randn(TIME, BATCH, INPUTS) + 1
    lstm(x)[0].sum().backward()
    p = {name: value.detach() for name, value in lstm.named_parameters()}
    h, c, states, slopes = torch.zeros(BATCH, UNITS), torch.zeros(BATCH, UNITS), [], []
    for t in range(TIME):
        u = x[t] @ p["weight_ih_l0"].T + p["bias_ih_l0"] + h @ p["weight_hh_l0"].T + p["bias_hh_l0"]
        i, f, g, o = u.chunk(4, 1)
        before, c = c, f.sigmoid() * c + i.sigmoid() * g.tanh()
        slope = [sigmoid_slope(i) * g.tanh(), sigmoid_slope(f) * before]
        slope += [(1 - g.tanh() ** 2) * i.sigmoid(), sigmoid_slope(o) * c.tanh()]
        states.append(h)
        slopes.append(torch.cat(slope, 1))
        h = o.sigmoid() * c.tanh()
    assert_moments(lstm.ih_l0, x.flatten(0, 1), torch.cat(slopes))
    assert_moments(lstm.hh_l0, torch.cat(states), torch.cat(slopes))


def test_slopes_of_a_gru():
    gru, *_ = make("GRUCell")
    x, h = torch.randn(9, INPUTS), torch.randn(9, UNITS)
    gru(x, h).sum().backward()
    p = {name: value.detach() for name, value in gru.named_parameters()}
    x_r, x_z, x_n = (x @ p["weight_ih"].T + p["bias_ih"]).chunk(3, 1)
    h_r, h_z, h_n = (h @ p["weight_hh"].T + p["bias_hh"]).chunk(3, 1)
    r = (x_r + h_r).sigmoid()
    n = (1 - (x_n + r * h_n).tanh() ** 2) * (1 - (x_z + h_z).sigmoid())
    gates = [sigmoid_slope(x_r + h_r) * h_n, sigmoid_slope(x_z + h_z)]
    assert_moments(gru.ih, x, torch.cat([*gates, n], 1))
    assert_moments(gru.hh, h, torch.cat([*gates, r * n], 1))


@pytest.mark.parametrize("name", ["stacked", "GRU", "projected"])
def test_padding_has_no_part_in_it(name):
    """Packed, masked, or each sequence by itself and added up."""
    ours, *_ = make(name)
    ours.dropout, ours.batch_first = 0.0, True
    ours.bidirectional = ours.bidirectional and name != "projected"
    x = torch.randn(BATCH, TIME, INPUTS)
    mask = torch.arange(TIME) < LENGTHS[:, None]

    def statistics(run):
        ours.zero_grad()
        for product in ours.products():
            product.neuron_stats.forget()
        run().backward()
        names = [n for n, p in ours.named_children() if p.neuron_stats.gathered() is not None]
        return {n: p for n, p in ours.named_children() if n in names}

    def values(products):
        at = {name: found(product) for name, product in products.items()}
        counts = {n: p.neuron_stats.gathered().samples.item() for n, p in products.items()}
        return at, counts

    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, counts = values(statistics(lambda: ours(packed)[0].data.sum()))
    assert set(counts.values()) == {float(LENGTHS.sum())}
    out = pad_packed_sequence(ours(packed)[0], batch_first=True)[0]
    assert out.shape[:2] == (BATCH, TIME)
    if ours.bidirectional:
        return  # padded input is read from its padding there

    def masked():
        with torchnorm.neuron_mask(mask):
            return (ours(x)[0] * mask[..., None]).sum()

    got, counts = values(statistics(masked))
    assert set(counts.values()) == {float(LENGTHS.sum())}
    for name, pair in expected.items():
        for a, b in zip(got[name], pair, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_example_of_a_packed_sequence_that_does_not_count(batch_first):
    ours, *_ = make("GRU")
    ours.batch_first = batch_first
    x, keep = torch.randn(BATCH, TIME, INPUTS), torch.tensor([True, False, True, True])
    mask = (torch.arange(TIME) < LENGTHS[:, None]) & keep[:, None]

    def statistics(x, lengths, mask, weights):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        for product in ours.products():
            product.neuron_stats.forget()
        with torchnorm.neuron_mask(mask):
            out = pad_packed_sequence(ours(packed)[0], batch_first=True)[0]
        (out.sum(-1) * weights[:, None]).sum().backward()
        gathered = [p.neuron_stats.gathered() for p in ours.products()]
        return [value for each in gathered for value in each.counted().present().values()]

    expected = statistics(x[keep], LENGTHS[keep], None, torch.ones(3))
    for given in (mask if batch_first else mask.T, keep):
        got = statistics(x, LENGTHS, given, keep)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_recurrent_layers_that_are_left_alone():
    model = nn.ModuleList(nn.GRU(UNITS, UNITS, batch_first=True) for _ in range(5))
    model[0].requires_grad_(False)
    model[2].weight_hh_l0 = model[1].weight_hh_l0

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)[0]
            return x

    report = torchnorm.convert(
        Chain(), torch.randn(BATCH, TIME, UNITS), recurrent=True, skip="layers.3"
    )
    assert [row.reason for row in report.rows] == [
        "frozen (requires_grad=False)",
        "its weight is shared with layers.2",
        "its weight is shared with layers.1",
        "skipped",
        "recurrent: the slopes of its own gates",
    ]
    assert [type(layer) for layer in model] == [*[nn.GRU] * 4, recurrent.GRU]


def test_steps_and_what_is_around_them():
    ours, optimizer, _ = make("LSTM")
    x = torch.randn(TIME, BATCH, INPUTS)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((ours(x)[0] - 0.1) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert list(ours.state_dict()) == list(nn.LSTM(INPUTS, UNITS).state_dict())
    for other, its in (
        copy.deepcopy((ours, optimizer)),
        pickle.loads(pickle.dumps((ours, optimizer))),
    ):
        assert other.ih_l0.owner is other
        assert other.ih_l0.weight is other.weight_ih_l0 is not ours.weight_ih_l0
        its.zero_grad()
        other(x)[0].sum().backward()
        its.step()
    assert ours.float()(x.float())[0].dtype == torch.float32


def test_a_model_in_place():
    model = nn.ModuleDict({"rnn": nn.GRU(INPUTS, UNITS), "head": nn.Linear(UNITS, 1)})
    before = list(model.parameters())
    assert list(recurrent.unfuse(model)) == ["rnn"]
    assert list(map(id, model.parameters())) == list(map(id, before))
    assert type(model["rnn"]) is recurrent.GRU
    assert recurrent.unfuse(model) == {}


def test_a_model_is_converted_and_reverted():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(INPUTS, UNITS, bidirectional=True, batch_first=True)
            self.head = nn.Linear(2 * UNITS, 1)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    model, x = Tagger(), torch.randn(BATCH, TIME, INPUTS)
    plain, names = model(x), list(model.state_dict())
    report = torchnorm.convert(model, x, recurrent=True)
    assert [(row.layer, row.kind, row.converted) for row in report.rows] == [
        ("lstm", "LSTM", True),
        ("head", "Linear", True),
    ]
    assert "LSTM    sigmoid and tanh" in str(report)
    optimizer = in_neuron_coordinates(torch.optim.Adam(model.parameters()), model)
    out = model(x)
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-14)
    out.square().sum().backward()
    optimizer.step()
    assert list(model.state_dict()) == names
    torchnorm.revert(model)
    assert type(model.lstm) is nn.LSTM
    assert list(dict(model.named_modules())) == ["", "lstm", "head"]
    model(x)
    assert torchnorm.convert(model, x).rows[0].reason.endswith("convert with recurrent=True")
    only = nn.LSTM(INPUTS, UNITS)
    assert torchnorm.convert(only, torch.randn(2, 2, INPUTS), recurrent=True).rows[0].converted
    torchnorm.revert(only)


def test_without_state():
    ours = recurrent.GRU(INPUTS, UNITS, rule=Rule(gradient="preconditioned"))
    theirs = nn.GRU(INPUTS, UNITS)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(TIME, BATCH, INPUTS)
    for module in (ours, theirs):
        module(x)[0].sum().backward()
    assert slice_error(ours.weight_ih_l0.grad, theirs.weight_ih_l0.grad) > 1e-3
