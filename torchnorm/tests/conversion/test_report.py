"""`torchnorm.convert`: what is left alone and why, errors, and that the model is as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import torchnorm
from parity_tests.models.torch import one_thread
from torchnorm import DEFERRED, Rule
from torchnorm.tests.conversion.nets import (
    D,
    Net,
    conv,
    convert_copy,
    dense,
    rows,
    step,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def test_left_alone_with_a_reason():
    model = nn.ModuleDict(
        {
            "twice": dense(),
            "never": dense(),
            "tied": dense(),
            "alias": dense(),
            "normed": nn.utils.parametrizations.weight_norm(dense()),
            "frozen": dense().requires_grad_(False),
            "used": dense(),
            "ours": torchnorm.Linear(8, 8, gate="relu", dtype=D),
            "complex": nn.Linear(8, 8, dtype=torch.complex128),
            "patched": dense(),
            "good": dense(),
            "embedding": nn.Embedding(3, 8, dtype=D),
            "rnn": nn.GRU(8, 8, dtype=D),
            "mha": nn.MultiheadAttention(8, 2, dtype=D),
            "skipped": nn.Sequential(dense()),
        }
    )
    model["alias"].weight = model["tied"].weight
    model["patched"].forward = model["patched"].forward

    def run(s, x):
        m = s.m
        for name in ("twice", "twice", "tied", "alias", "normed", "frozen", "used", "ours"):
            x = m[name](x)
        x = F.linear(x, m["used"].weight) + m["complex"](x.to(torch.complex128)).real
        x = m["good"](m["patched"](m["skipped"](x))) + m["embedding"].weight[0]
        return m["mha"](*[m["rnn"](x)[0]] * 3)[0]

    rule = Rule(gradient="preconditioned")  # else "twice" is converted
    report = torchnorm.convert(Net(run, m=model), rows(), skip="m.skipped", rule=rule)
    why = {row.layer.removeprefix("m."): row.reason for row in report.left}
    expected = {
        "twice": "called 2 times in one forward pass; name it in gates= to convert it",
        "never": "not called on example_input",
        "tied": "its weight is shared with m.alias",
        "alias": "its weight is shared with m.tied",
        "normed": "its weight goes into weight_norm, which is no product that is linear in it",
        "frozen": "frozen (requires_grad=False)",
        "used": "its weight is used outside of it, too",
        "ours": "a layer of torchnorm already",
        "complex": "its weight has dtype complex128",
        "patched": "its forward was replaced",
        "embedding": "no dense or convolutional layer",
        "rnn": "its kernels are fused; convert with recurrent=True",
        "mha": "its kernels are fused",
        "mha.out_proj": "its weight goes into multi_head_attention_forward, which is no product "
        "that is linear in it",
        "skipped.0": "skipped",
    }
    assert why == expected
    assert [row.layer for row in report.converted] == ["m.good"]
    text = str(report)
    assert len({line.index("Linear") for line in text.splitlines() if " Linear " in line}) == 1
    assert "1 of 16 layers with a matrix are converted; Rule(" in text


def test_layers_that_train_mode_drops_are_found_in_eval_mode():
    def run(s, x):
        return s.b(x) if s.training else s.b(F.relu(s.a(x)))

    report = convert_copy(Net(run, a=dense(), b=dense()), rows())[1]
    assert report["a"].gate == "relu"
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU())
    assert convert_copy(model, torch.ones(1, 8))[1]["0"].gate == "relu"  # train mode raises


def everything(model):
    """All there is to compare before and after."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [
        (type(m), {k: list(v) if isinstance(v, dict) else v for k, v in vars(m).items()})
        for m in model.modules()
    ]
    return state, parts, torch.get_rng_state(), [p.grad for p in model.parameters()]


def same(before, after):
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert len(before[1]) == len(after[1])
    for (kind, a), (other, b) in zip(before[1], after[1], strict=True):
        assert kind is other
        assert a == b
    assert torch.equal(before[2], after[2])
    assert all(a is b for a, b in zip(before[3], after[3], strict=True))


def stateful():
    def run(s, x):
        s.calls = s.calls + 1
        s.seen.append(1)
        x = F.dropout(s.n(s.a(x)), 0.5, s.training)
        if x.shape[0] == 5:
            raise KeyError("five")
        return s.b(F.relu(x))

    model = Net(run, a=dense(), n=nn.BatchNorm1d(8, dtype=D), b=dense())
    model.calls, model.seen = 0, []
    model.n.eval()
    model.b.register_forward_hook(lambda *_: None)
    step(model, rows())
    return model


def test_watching_changes_nothing_and_revert_gives_the_original_back():
    model = stateful()
    x = rows()
    before = everything(model)
    report = torchnorm.convert(model, x)
    assert len(report.converted) == 2
    assert torch.equal(torch.get_rng_state(), before[2])
    assert model.calls == 1
    assert model.n.training is False
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert [p.grad for p in model.parameters()] == before[3]
    torchnorm.revert(model)
    same(before, everything(model))


def test_a_pass_that_breaks_off_changes_nothing_either():
    model = stateful()
    before = everything(model)
    with pytest.raises(
        ValueError, match=r"example_input: got tensors of shapes \[\(5, 8\)\]"
    ) as info:
        torchnorm.convert(model, torch.zeros(5, 8, dtype=D))
    assert isinstance(info.value.__cause__, KeyError)
    same(before, everything(model))
    with pytest.raises(ValueError, match="expected an input that Net runs on"):
        torchnorm.convert(model, torch.zeros(12, 7, dtype=D))
    same(before, everything(model))


def compiled():
    return torch.compile(nn.Sequential(dense()), backend="eager")


def converted():
    model = nn.Sequential(dense())
    torchnorm.convert(model, rows())
    return model


X = torch.zeros(2, 8, dtype=D)
ERRORS = {
    "no module": (lambda: torchnorm.convert(3), TypeError, "model: got int"),
    "no layer": (
        lambda: torchnorm.convert(nn.Embedding(3, 2)),
        ValueError,
        "without a layer to conv",
    ),
    "twice": (lambda: torchnorm.convert(converted(), X), ValueError, "converted already"),
    "no example": (lambda: torchnorm.convert(dense()), ValueError, "example_input: got None"),
    "compiled": (lambda: torchnorm.convert(compiled(), X), ValueError, "before torch.compile"),
    "lazy": (lambda: torchnorm.convert(nn.LazyLinear(3), X), ValueError, "run one batch"),
    "parallel": (
        lambda: torchnorm.convert(nn.DataParallel(dense()), X),
        ValueError,
        "before wrapping it in DataParallel",
    ),
    "rule": (lambda: torchnorm.convert(dense(), X, rule="x"), TypeError, "rule: got 'x'"),
    "gates": (lambda: torchnorm.convert(dense(), X, gates=3), TypeError, "gates: got 3"),
    "gate": (lambda: torchnorm.convert(dense(), gates={"": "relo"}), ValueError, "'relo'"),
    "deferred": (lambda: torchnorm.convert(dense(), gates={"": DEFERRED}), ValueError, "DEFERRED"),
    "pattern": (
        lambda: torchnorm.convert(nn.Sequential(dense()), gates={"x*": None}),
        ValueError,
        "'x\\*', which matches no layer",
    ),
    "skip": (lambda: torchnorm.convert(dense(), X, skip="x"), ValueError, "skip: got 'x'"),
    "skip type": (lambda: torchnorm.convert(dense(), X, skip=(3,)), TypeError, "skip: got 3"),
    "computed": (
        lambda: torchnorm.convert(
            nn.Sequential(prune.identity(dense(), "weight"), dense()), gates={"*": None}
        ),
        ValueError,
        "its weight is computed",
    ),
    "revert": (lambda: torchnorm.revert(dense()), ValueError, "without a converted layer"),
    "revert no module": (lambda: torchnorm.revert(3), TypeError, "model: got int"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, kind, text = ERRORS[name]
    with pytest.raises(kind, match=text):
        call()


def test_gates_by_name():
    model = nn.Sequential(dense(), nn.Tanh(), dense(), nn.ReLU(), dense())
    model[2].weight = model[4].weight
    model[0].requires_grad_(False)
    report = torchnorm.convert(model, gates={"0": "tanh", "[12]": "relu"}, rule=Rule(scale="layer"))
    assert [(r.layer, r.gate, r.converted) for r in report.rows] == [
        ("0", "tanh", True),
        ("2", "relu", True),
        ("4", None, False),
    ]
    assert model[0].rule == Rule(scale="layer")
    assert "Rule(scale='layer')" in str(report)
    torchnorm.revert(model)
    assert type(model[0]) is nn.Linear


def test_the_root_may_be_the_layer_and_examples_come_in_every_form():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = dense()

        def forward(self, x, *, scale):
            return self.a(x * scale).relu()

        @property
        def dummy_inputs(self):
            return {"x": rows(), "scale": 2}

    layer = dense()
    assert torchnorm.convert(layer, rows()).rows[0].layer == ""
    assert type(layer) is torchnorm.Linear
    torchnorm.revert(layer)
    assert torchnorm.convert(Two(), {"x": rows(), "scale": 2})["a"].gate == "relu"
    assert torchnorm.convert(Two())["a"].gate == "relu"
    assert torchnorm.convert(nn.Sequential(dense()), (rows(),))["0"].gate is None


def test_skip_by_name_pattern_and_type():
    def model():
        return nn.Sequential(nn.Sequential(dense(), dense()), conv(), dense())

    def left(skip):
        torch.manual_seed(0)
        net = model()
        net[1] = nn.Identity()
        report = torchnorm.convert(net, rows(), skip=skip)
        return [row.layer for row in report.left]

    assert left("0") == ["0.0", "0.1"]
    assert left(["0.1"]) == ["0.1"]
    assert left(["?.?"]) == ["0.0", "0.1"]
    assert left(nn.Sequential) == ["0.0", "0.1", "2"]
    assert left((nn.Identity,)) == []
