"""What the PyTorch side must survive: compile, torch.func, autocast, in-place, checkpoints."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.tolerances import GATE, VISIBLE, slice_error
from torchnorm import Rule
from torchnorm.functional import neuronwise_linear
from torchnorm.tests.versions import WHOLE_GRAPHS

PRECONDITIONED = Rule(gradient="preconditioned")
RULES = [
    Rule(),
    Rule(weighting="error"),
    Rule(weighting="uniform"),
    Rule(weighting="signed", scale="layer"),
    Rule(gradient="standardized", statistics_rows=7),
]


def tensors():
    """X [N,I], weight [O,I], bias [O] and a cotangent [N,O] in float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 3)) * [1, 10, 0.1] + [0, 30, 1]
    weight = rng.normal(size=(4, 3))
    bias = -(x @ weight.T).mean(0)  # about half of the samples are active
    return [torch.tensor(a) for a in (x, weight, bias, rng.normal(size=(32, 4)))]


def layer(x, weight, bias, gate="gelu", rule=Rule()):
    """Something to compile."""
    return neuronwise_linear(x, weight, bias, gate=gate, rule=rule)


def gradients(run=layer, **kwargs):
    """The gradients at x, weight and bias by .backward()."""
    *leaves, g_z = tensors()
    leaves = [leaf.requires_grad_() for leaf in leaves]
    run(*leaves, **kwargs).backward(g_z)
    return [leaf.grad for leaf in leaves]


def assert_same(actual, expected, gate=GATE["float64"]):
    """Every tensor within the gate, per neuron; a bias vector is one slice."""
    for a, e in zip(actual, expected, strict=True):
        assert slice_error(a, e, axes=(0,) if e.ndim > 1 else ()) <= gate


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    "gate", ["relu", "gelu", None, torch.sin], ids=["relu", "gelu", "none", "sin"]
)
@WHOLE_GRAPHS
def test_compile(rule, gate):
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_same(gradients(compiled, gate=gate, rule=rule), gradients(gate=gate, rule=rule))


@pytest.mark.filterwarnings("ignore")
@WHOLE_GRAPHS
def test_compile_with_inductor():
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True)
    assert_same(gradients(compiled), gradients())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_func_grad(rule):
    x, weight, bias, g_z = tensors()
    run = torch.func.grad(lambda x, w, b: (layer(x, w, b, rule=rule) * g_z).sum(), (0, 1, 2))
    assert_same(run(x, weight, bias), gradients(rule=rule))


def test_func_vmap_takes_the_statistics_of_each_example():
    x, weight, bias, g_z = tensors()
    one = torch.func.grad(lambda w, x, g: (layer(x, w, bias) * g).sum())
    xs, gs = x.reshape(4, 8, 3), g_z.reshape(4, 8, 4)
    mapped = torch.func.vmap(one, (None, 0, 0))(weight, xs, gs)
    for k in range(4):
        assert slice_error(mapped[k], one(weight, xs[k], gs[k])) <= GATE["float64"]
    assert slice_error(mapped.sum(0), one(weight, x, g_z)) > VISIBLE  # documented: not the same


@pytest.mark.parametrize("knob", ["shrinkage", "damping", "epsilon"])
def test_a_sweep_over_a_knob_is_one_vmap(knob):
    x, weight, bias, g_z = tensors()

    def gradient(value):
        rule = Rule(**{knob: value})
        return torch.func.grad(lambda w: (layer(x, w, bias, rule=rule) * g_z).sum())(weight)

    values = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    swept = torch.func.vmap(gradient)(values)
    for k, value in enumerate(values):
        assert slice_error(swept[k], gradient(value.item())) <= GATE["float64"]
    assert slice_error(swept[0], swept[2]) > VISIBLE


@WHOLE_GRAPHS
def test_compiled_func_grad_is_never_silently_plain():
    # PyTorch drops the custom backward there (pytorch#193279); we step out of the compiled region.
    x, weight, bias, g_z = tensors()
    gradient = torch.func.grad(lambda w: (layer(x, w, bias) * g_z).sum())
    torch.compiler.reset()
    compiled = torch.compile(gradient, backend="eager")
    assert slice_error(compiled(weight), gradient(weight)) <= GATE["float64"]
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"Deferred exception|torch\.func transform inside"):
        torch.compile(gradient, backend="eager", fullgraph=True)(weight)


def test_autocast_is_the_frameworks():
    torch.manual_seed(0)
    kwargs = {"gate": "relu", "rule": PRECONDITIONED}
    ours, reference = torchnorm.Linear(3, 4, **kwargs), nn.Linear(3, 4)
    reference.load_state_dict(ours.state_dict())
    x = tensors()[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, expected = ours(x), reference(x)
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, expected)
    z.float().sum().backward()
    assert ours.weight.grad is not None
    assert ours.weight.grad.dtype == torch.float32
    double = torchnorm.Linear(3, 4, dtype=torch.float64, **kwargs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert double(x.double()).dtype == torch.float64


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@WHOLE_GRAPHS
def test_compile_with_symbolic_shapes_and_changing_knobs():
    torch.compiler.reset()
    dynamic = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_same(gradients(dynamic), gradients())
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for damping in (0.1, 0.2, 0.3):
        rule = Rule(damping=damping)
        assert_same(gradients(compiled, rule=rule), gradients(rule=rule))


def test_second_derivatives_are_refused():
    # PyTorch would put the adapted rule in place of the derivative of z, a wrong number.
    x, weight, bias, g_z = tensors()
    z = layer(x, weight.requires_grad_(), bias, gate="tanh")
    (g,) = torch.autograd.grad((z.tanh() * g_z).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (g**2).sum().backward()


def test_gates_that_work_in_place_leave_the_output_alone():
    x, weight, bias, _ = tensors()
    weight.requires_grad_()
    for gate in (nn.SiLU(inplace=True), nn.ReLU(inplace=True), torch.tanh_):
        z = layer(x, weight, bias, gate=gate)
        assert torch.equal(z, nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("shape", [(32,), (4, 8), (2, 2, 8)], ids=str)
def test_in_place_activation_of_any_number_of_axes(shape):
    x, weight, bias, g_z = tensors()
    results = []
    for inplace in (True, False):
        w = weight.clone().requires_grad_()
        z = layer(x.reshape(*shape, 3), w, bias, gate="relu")
        nn.functional.relu(z, inplace=inplace).backward(g_z.reshape(*shape, 4))
        results.append(w.grad)
    assert torch.equal(*results)


def test_meta_device_and_sizes_of_zero():
    layer = torchnorm.Linear(3, 4, gate="silu", rule=PRECONDITIONED, device="meta")
    z = layer(torch.zeros(5, 3, device="meta"))
    assert z.shape == (5, 4)
    for inputs, outputs, rows in ((0, 4, None), (3, 0, None), (0, 4, 2), (3, 0, 2)):
        rule = Rule(statistics_rows=rows)
        x, weight = torch.ones(5, inputs), torch.ones(outputs, inputs, requires_grad=True)
        z = neuronwise_linear(x, weight, torch.zeros(outputs), gate="relu", rule=rule)
        z.sum().backward()
        assert weight.grad is not None
        assert weight.grad.shape == weight.shape


def test_a_gate_that_is_a_module_is_not_state():
    module = torchnorm.Linear(3, 4, gate=nn.PReLU(), rule=PRECONDITIONED)
    assert list(module.state_dict()) == ["weight", "bias"]
    module.load_state_dict(nn.Linear(3, 4).state_dict(), strict=True)
    module(torch.randn(8, 3)).sum().backward()


@pytest.mark.parametrize(
    ("gate", "activation"),
    [
        ("relu", nn.ReLU(inplace=True)),
        ("silu", nn.SiLU(inplace=True)),
        ("elu", nn.ELU(inplace=True)),
    ],
)
def test_in_place_activations(gate, activation):
    def run(x, weight, bias):
        return activation(layer(x, weight, bias, gate=gate))

    def copied(x, weight, bias):
        return activation(layer(x, weight, bias, gate=gate).clone())

    assert_same(gradients(run), gradients(copied))


def test_checkpoint_and_retained_graphs():
    def recomputed(*leaves):
        return checkpoint(layer, *leaves, use_reentrant=False)

    assert_same(gradients(recomputed), gradients())
    *leaves, g_z = tensors()
    leaves = [leaf.requires_grad_() for leaf in leaves]
    z = layer(*leaves)
    first = torch.autograd.grad(z, leaves, g_z, retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(z, leaves, g_z), strict=True)
    )


def test_no_grad_costs_and_keeps_nothing():
    x, weight, bias, _ = tensors()
    with torch.no_grad():
        z = layer(x, weight.requires_grad_(), bias)
    assert z.grad_fn is None
    with torch.inference_mode():
        layer(x, weight, bias)


def test_frozen_inputs_and_parameters():
    *leaves, g_z = tensors()
    for frozen in range(3):
        mixed = [leaf.clone().requires_grad_(k != frozen) for k, leaf in enumerate(leaves)]
        layer(*mixed).backward(g_z)
        assert [leaf.grad is None for leaf in mixed] == [k == frozen for k in range(3)]


def test_gradcheck_of_what_is_true():
    x, weight, bias, _ = tensors()
    x = x[:6].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, weight, bias), (x,))
    leaves = (x, weight.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(lambda *a: layer(*a, rule=torchnorm.PLAIN), leaves)
    with pytest.raises(RuntimeError):
        torch.autograd.gradcheck(lambda *a: layer(*a), leaves)


def test_modules_copy_pickle_and_run_functionally():
    torch.manual_seed(0)
    rule = Rule(gradient="preconditioned", scale="layer")
    module = torchnorm.Linear(3, 4, gate="relu", rule=rule, dtype=torch.float64)
    x, _, _, g_z = tensors()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert (other.gate, other.rule) == (module.gate, module.rule)
        for m in (module, other):
            m.zero_grad()
            m(x).backward(g_z)
        assert torch.equal(other.weight.grad, module.weight.grad)
    parameters = dict(module.named_parameters())
    run = torch.func.grad(lambda p: (torch.func.functional_call(module, p, (x,)) * g_z).sum())
    assert torch.equal(run(parameters)["weight"], module.weight.grad)


def test_forward_mode_is_refused_and_plain_is_not():
    x, weight, bias, _ = tensors()
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda w: layer(x, w, bias), (weight,), (weight,))
    torch.func.jvp(lambda w: layer(x, w, bias, rule=torchnorm.PLAIN), (weight,), (weight,))
