"""`torchnorm.convert`: what becomes of a model whose parts are replaced afterwards."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.models.torch import PRECONDITIONED, one_thread
from parity_tests.tolerances import VISIBLE, slice_error
from torchnorm.tests.conversion.nets import (
    D,
    Net,
    conv,
    convert_copy,
    dense,
    images,
    norm,
    rows,
    step,
)
from torchnorm.tests.versions import WHOLE_GRAPHS


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def convolutional():
    """A deferred layer, a direct one, and one without an activation."""
    torch.manual_seed(0)
    parts = (conv(), norm(), nn.ReLU(), conv(), nn.LeakyReLU(), nn.Flatten())
    return nn.Sequential(*parts, nn.Linear(144, 3, dtype=D))


class Unit(nn.Module):
    """A gated unit; its activation is a module, and one more is a function in an attribute."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.g, self.u, self.d, self.e = dense(), dense(), dense(), dense()
        self.act, self.function = nn.SiLU(), F.relu

    def forward(self, x):
        """Run it."""
        return self.e(self.function(self.d(self.act(self.g(x)) * self.u(x))))


def told(model, x):
    """The texts of the warnings of three passes; the later ones are silent."""
    texts = []
    for turn in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(model, x)
        assert turn == 0 or not caught
        texts += [str(each.message) for each in caught]
    return texts


def put(place, module):
    """Replace by index."""

    def change(model):
        model[place] = copy.deepcopy(module)

    return change


def everywhere(kind, make):
    """Replace recursively, by setattr."""

    def change(model):
        for name, child in model.named_children():
            if isinstance(child, kind):
                setattr(model, name, make())
            change(child)

    return change


def drop_hooks(model):
    for module in list(model.children()):
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


#: What leaves all activations as they were; and a model that has it from the beginning.
HARMLESS = {
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "GroupNorm": everywhere(nn.BatchNorm2d, lambda: nn.GroupNorm(2, 4, dtype=D)),
    "Identity": put(1, nn.Identity()),
    "another ReLU": put(2, nn.ReLU(inplace=True)),
    "equal LeakyReLU": put(4, nn.LeakyReLU(0.01)),
    "hooks": drop_hooks,
    "nothing": lambda model: None,
}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_replaced_is_told_as_before(name, copied):
    model, report = convert_copy(convolutional(), images())
    assert report["0"].reason == "deferred to 1"
    if copied:
        model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    HARMLESS[name](model)
    reference = convolutional()
    HARMLESS[name](reference)
    torchnorm.convert(reference, images(), rule=PRECONDITIONED)
    assert told(model, images()) == []
    found, expected = (step(each, images())[1] for each in (model, reference))
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    torchnorm.revert(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def become(place, kind):
    def change(model):
        model[place].__class__ = kind

    return change


def slope(value):
    def change(model):
        model[4].negative_slope = value

    return change


OTHERS = {
    "by index": (put(4, nn.GELU()), "gate of '3': got GELU(approximate='none') at '4', expected L"),
    "all": (
        everywhere((nn.ReLU, nn.LeakyReLU), nn.SiLU),
        "gate of '0': got SiLU() at '2', expected ReLU(); gate of '3': got SiLU() at '4', expected",
    ),
    "class": (become(4, nn.SiLU), "gate of '3': got SiLU"),
    "attribute": (slope(0.3), "got LeakyReLU(negative_slope=0.3) at '4', expected LeakyReLU(neg"),
    "no more": (put(2, nn.Identity()), "gate of '0': got Identity() at '2', expected ReLU()"),
    "layer": (put(3, conv()), "layer '3': got Conv2d, which is plain, expected the converted one"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_activation_is_reported_once(name):
    change, text = OTHERS[name]
    model, _ = convert_copy(convolutional(), images())
    change(model)
    (found,) = told(model, images())
    assert text in found
    # What it says is to be done is enough.
    assert "call torchnorm.revert(model) and torchnorm.convert(model, example_input) again" in found
    torchnorm.revert(model)
    torchnorm.convert(model, images(), rule=PRECONDITIONED)
    assert told(model, images()) == []
    reference = convolutional()
    change(reference)
    reference.load_state_dict(model.state_dict())
    torchnorm.convert(reference, images(), rule=PRECONDITIONED)
    found, expected = (step(each, images())[1] for each in (model, reference))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_functions_and_factors():
    model = Unit()
    torchnorm.convert(model, rows(), rule=PRECONDITIONED)
    model.function = torch.relu  # the same
    assert told(model, rows()) == []
    model.function = F.gelu
    assert "gate of 'd': got gelu at 'function', expected relu" in told(model, rows())[0]
    model.act = nn.Tanh()
    assert "gate of 'g': got Tanh() at 'act', expected SiLU()" in told(model, rows())[0]
    model = Unit()
    torchnorm.convert(model, rows(), rule=PRECONDITIONED)
    model.u = dense()
    (text,) = told(model, rows())
    assert "layer 'u': got Linear" in text


def test_an_activation_where_nothing_was():
    def model():
        return nn.Sequential(dense(), nn.Identity(), dense())

    for module, text in (
        (nn.ReLU(), "gate of '0': got ReLU() at '1', expected Identity()"),
        (nn.Dropout(0.1), None),
        (nn.LayerNorm(8, dtype=D), None),
    ):
        net, _ = convert_copy(model(), rows())
        net[1] = module
        found = told(net, rows())
        assert (text in found[0]) if text else found == []


class Counting(nn.Module):
    """An activation that changes with every call, but for what it computes."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        """Apply it."""
        self.calls += 1
        return x.relu()


def test_what_is_no_other_activation():
    model = nn.Sequential(dense(), Counting(), dense(), nn.PReLU(dtype=D), dense())
    torchnorm.convert(model, rows(), rule=PRECONDITIONED)
    assert model[1].calls == 0
    assert told(model, rows()) == []
    assert model[1].calls == 3
    assert model[2].gate is model[3]
    with torch.no_grad():
        model[3].weight.fill_(0.7)  # the gate is the module, which knows
    assert told(model, rows()) == []


@pytest.mark.parametrize("within", [False, True])
def test_wrappers_are_seen_through(within):
    library = "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"
    wrap = pytest.importorskip(library).checkpoint_wrapper
    block = nn.Sequential(dense(), nn.LayerNorm(8, dtype=D), nn.ReLU())
    model = nn.Sequential(block, nn.Sequential(dense(), nn.ReLU()), dense())
    torchnorm.convert(model, rows(), rule=PRECONDITIONED)
    expected = step(model, rows())[1].values()
    for block in list(model)[:2]:
        for place in range(1, len(block) if within else 1):
            block[place] = wrap(block[place])
    if not within:
        model[0], model[1] = wrap(model[0]), wrap(model[1])
    assert told(model, rows()) == []
    assert all(map(torch.equal, step(model, rows())[1].values(), expected))


def test_a_handle_that_is_never_told_is_reported_once():
    model, _ = convert_copy(convolutional(), images())
    expected = step(model, images())[1]["0.weight"]
    parts = nn.Sequential(model[0], nn.GroupNorm(1, 4, dtype=D), *list(model)[2:])
    step(parts, images())  # the model itself is not called any more
    with pytest.warns(UserWarning, match="gate of '0': got no word of .* expected it at '1'"):
        found = step(parts, images())[1]["0.weight"]
    assert slice_error(found, expected) > VISIBLE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(parts, images())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_that_part_a_layer_from_its_activation(reentrant):
    def run(s, x):
        z = s.a(x)
        if s.active:
            return checkpoint(lambda z: s.act(s.n(z) + x), z, use_reentrant=reentrant)
        return s.act(s.n(z) + x)

    model = Net(run, a=dense(), n=nn.LayerNorm(8, dtype=D), act=nn.Tanh())
    model.active = False
    torchnorm.convert(model, rows(), rule=PRECONDITIONED)
    model.active = True
    texts = told(model, rows().requires_grad_())
    assert [text.split(",")[0] for text in texts] == [
        "gate of 'a': got no word of what its activation sees"
    ] * reentrant


@pytest.mark.filterwarnings("ignore")
@WHOLE_GRAPHS
def test_compiled_models_have_no_break():
    torch.compiler.reset()
    model = Unit()
    torchnorm.convert(model, rows(), rule=PRECONDITIONED)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    found, expected = step(compiled, rows())[1], step(model, rows())[1]
    for key, value in expected.items():
        assert slice_error(found[f"_orig_mod.{key}"], value, axes=(0,)) <= 1e-12


def test_layers_that_were_named_or_are_called_by_functions():
    x = rows()
    for gates in ("auto", {"*": "relu"}):
        model = Net(lambda s, x: s.b(F.relu(s.a(x))), a=dense(), b=dense())
        torchnorm.convert(model, x, gates=gates, rule=PRECONDITIONED)
        model.b = nn.Sequential(dense(), nn.Tanh())
        (text,) = told(model, x)
        assert text.startswith("layer 'b': got Sequential, which is plain, expected the converted")
        model.a = nn.Identity()  # nothing to convert
        assert told(model, x) == []


def test_a_part_that_is_reverted_stays_so():
    model, _ = convert_copy(convolutional(), images())
    torchnorm.revert(model[0])
    torchnorm.revert(model[3])
    assert told(model, images()) == []
    assert type(model[0]) is nn.Conv2d
    assert not model[0]._forward_hooks
    torchnorm.revert(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
