"""Checkpoints that move between PyTorch and Flax: the same function, the same statistics."""

import re
from functools import partial
from itertools import pairwise

import flax.linen as fn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

import jaxnorm
import torchnorm
from jaxnorm import from_torch, to_torch
from parity_tests.implementations import weights
from parity_tests.tolerances import GATE, slice_error

F64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These products are too small for several, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def channels_first(x):
    return np.moveaxis(x, -1, 1)


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def same(a, b):
    """Bit for bit, dtypes and structure too."""
    equal = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all()), a, b
    )
    return jax.tree.all(equal)


def arrays(tree):
    """Tensors as arrays; bfloat16, which NumPy does not have, as it is."""
    own = lambda t: t if t.dtype == torch.bfloat16 else t.numpy()  # noqa: E731
    return jax.tree.map(lambda t: own(t.detach()), tree)


def tensors(tree):
    """Arrays as tensors."""
    return jax.tree.map(torch.from_numpy, tree)


def fresh(module):
    """A torch module in float64 whose entries are all different, the square ones asymmetric."""
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 * name.endswith("running_var") - 0.3)
    return module.eval()


# One layer of each kind: Flax's (in either package), PyTorch's, an input of Flax.

DENSE = {
    "dense": (partial(fn.Dense, 4), lambda: nn.Linear(4, 4), (3, 4)),
    "dense without bias": (
        partial(fn.Dense, 5, use_bias=False),
        lambda: nn.Linear(4, 5, bias=False),
        (3, 4),
    ),
    "into heads": (partial(fn.DenseGeneral, (2, 3)), lambda: nn.Linear(6, 6), (5, 6)),
    "out of heads": (
        partial(fn.DenseGeneral, 6, axis=(-2, -1)),
        lambda: nn.Linear(6, 6),
        (5, 2, 3),
    ),
}
CONVOLUTIONS = {
    "conv 1d": (
        partial(fn.Conv, 4, (3,), padding=1),
        lambda: nn.Conv1d(4, 4, 3, padding=1),
        (2, 7, 4),
    ),
    "conv 2d": (
        partial(fn.Conv, 4, (3, 2), strides=2, padding=1),
        lambda: nn.Conv2d(4, 4, (3, 2), stride=2, padding=1),
        (2, 6, 5, 4),
    ),
    "conv 3d": (
        partial(fn.Conv, 5, (2, 3, 1), kernel_dilation=(1, 2, 1), padding="VALID"),
        lambda: nn.Conv3d(4, 5, (2, 3, 1), dilation=(1, 2, 1)),
        (2, 3, 6, 2, 4),
    ),
    "conv in groups": (
        partial(fn.Conv, 6, (3, 3), padding=1, feature_group_count=2),
        lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
        (2, 5, 4, 4),
    ),
    "depthwise conv": (
        partial(fn.Conv, 8, (3,), padding=1, feature_group_count=4),
        lambda: nn.Conv1d(4, 8, 3, padding=1, groups=4),
        (2, 5, 4),
    ),
}
TRANSPOSED = {
    f"transposed conv {rank}d{', transpose_kernel' * transpose_kernel}": (
        partial(
            fn.ConvTranspose, 4, window, strides=(2,) * rank, padding="VALID",
            transpose_kernel=transpose_kernel,
        ),
        partial(reference, 4, 4, window, stride=2),
        (*(3, 5, 4, 3)[:rank + 1], 4),
    )
    for rank, window, reference in (
        (1, (3,), nn.ConvTranspose1d),
        (2, (3, 2), nn.ConvTranspose2d),
        (3, (2, 3, 4), nn.ConvTranspose3d),
    )
    for transpose_kernel in (False, True)
}  # fmt: skip
NORMS = {
    "layer norm": (
        partial(fn.LayerNorm, epsilon=1e-5, use_fast_variance=False),
        lambda: nn.LayerNorm(6),
        (3, 6),
    ),
    "group norm": (
        partial(fn.GroupNorm, 2, epsilon=1e-5, use_fast_variance=False),
        lambda: nn.GroupNorm(2, 6),
        (2, 4, 6),
    ),
    "batch norm": (
        partial(fn.BatchNorm, use_running_average=True),
        lambda: nn.BatchNorm1d(6),
        (2, 4, 6),
    ),
}


def conv_transposes(name):
    """What has to be said of a layer at the root, which has no name."""
    return {"conv_transposes": [""] if name in TRANSPOSED and "kernel" not in name else []}


def flax_layer(make, package=fn, **kwargs):
    """A layer in float64, of the framework or of ours."""
    return getattr(package, make.func.__name__)(*make.args, **make.keywords, **F64, **kwargs)


def close(actual, expected):
    return slice_error(actual, expected, axes=()) <= GATE["float64"]


@pytest.mark.parametrize("name", [*DENSE, *CONVOLUTIONS, *TRANSPOSED, *NORMS])
def test_the_same_function(name):
    make, reference, shape = (DENSE | CONVOLUTIONS | TRANSPOSED | NORMS)[name]
    layer, reference, x = flax_layer(make), fresh(reference()), RNG.standard_normal(shape)
    like = jax.eval_shape(layer.init, jax.random.key(0), x)
    options = conv_transposes(name)
    variables = from_torch(reference.state_dict(), like, **options)
    rows = x.reshape(5, 6) if name == "out of heads" else x
    moved = name not in DENSE and name != "layer norm"
    expected = reference(torch.from_numpy(channels_first(rows) if moved else rows)).detach().numpy()
    expected = channels_last(expected) if moved else expected
    assert close(layer.apply(variables, x), expected.reshape(layer.apply(variables, x).shape))
    # And back, to the last bit, with what Flax does not count.
    again = to_torch(variables, reference.state_dict(), **options)
    assert list(again) == list(reference.state_dict())
    assert same(again, arrays(dict(reference.state_dict())))
    reference.load_state_dict(tensors(again))
    assert same(from_torch(again, like, **options), variables)


def test_embedding_and_learnt_slope():
    table, like = (
        np.arange(12.0).reshape(4, 3),
        fn.Embed(4, 3, **F64).init(jax.random.key(0), jnp.arange(2)),
    )
    params = from_torch(nn.Embedding(4, 3, _weight=torch.from_numpy(table)).state_dict(), like)
    assert same(params, {"params": {"embedding": table}})
    slope = fn.PReLU(param_dtype=jnp.float64).init(jax.random.key(0), jnp.ones(2))
    reference = fresh(nn.PReLU())
    found = from_torch(reference.state_dict(), slope)["params"]["negative_slope"]
    assert found.shape == ()
    assert found == reference.weight.item()
    assert same(to_torch(slope, reference.state_dict()), {"weight": np.full(1, 0.01)})


def test_attention():
    """PyTorch's one projection is three layers in Flax."""
    reference, width = fresh(nn.MultiheadAttention(6, 2, batch_first=True)), 6
    layer = fn.MultiHeadDotProductAttention(2, **F64)
    x = RNG.standard_normal((3, 5, width))
    state = arrays(dict(reference.state_dict()))
    for entry in ("weight", "bias"):
        parts = np.split(state.pop(f"in_proj_{entry}"), 3)
        names = ("query", "key", "value")
        state |= {f"{n}.{entry}": part for n, part in zip(names, parts, strict=True)}
    like = jax.eval_shape(layer.init, jax.random.key(0), x)
    variables = from_torch(state, like, names={"out": "out_proj"})
    t = torch.from_numpy(x)
    assert close(layer.apply(variables, x), reference(t, t, t)[0].detach().numpy())


# Whole networks.


class Convnet(fn.Module):
    """Conv, BatchNorm, conv, flatten, dense."""

    general: bool = False

    @fn.compact
    def __call__(self, x):
        """Run it."""
        x = fn.relu(fn.BatchNorm(True, **F64)(fn.Conv(4, (3, 3), padding=1, **F64)(x)))
        x = fn.relu(fn.Conv(4, (3, 3), strides=2, padding=1, **F64)(x))
        if self.general:
            return fn.DenseGeneral(5, (-3, -2, -1), **F64)(x)
        return fn.Dense(5, **F64)(x.reshape(len(x), -1))


def torch_convnet():
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


CONVNET = {"Conv_0": "0", "BatchNorm_0": "1", "Conv_1": "3"}


@pytest.mark.parametrize("general", [False, True])
def test_a_dense_layer_behind_an_image(general):
    reference, x = fresh(torch_convnet()), RNG.standard_normal((2, 6, 4, 4))
    model = Convnet(general)
    last = "DenseGeneral_0" if general else "Dense_0"
    like = jax.eval_shape(model.init, jax.random.key(0), x)
    kwargs = {"names": CONVNET | {last: "6"}, "flattened": {last: (3, 2, 4)}}
    variables = from_torch(reference.state_dict(), like, **kwargs)
    expected = reference(torch.from_numpy(channels_first(x))).detach().numpy()
    assert close(model.apply(variables, x), expected)
    assert same(
        to_torch(variables, reference.state_dict(), **kwargs), arrays(dict(reference.state_dict()))
    )
    # Without it the function is another one, which no shape shows: nothing is guessed.
    with pytest.raises(ValueError, match=r"flattened: got None, where .* with 24 inputs may read"):
        from_torch(reference.state_dict(), like, names=kwargs["names"])
    kwargs["flattened"] = {}
    wrong = model.apply(from_torch(reference.state_dict(), like, **kwargs), x)
    assert slice_error(wrong, expected) > 0.01


class Block(nnx.Module):
    """Two dense layers, BatchNorm and a transposed convolution."""

    def __init__(self, rngs):
        kwargs = {"rngs": rngs, "param_dtype": jnp.float64, "dtype": jnp.float64}
        self.layers = nnx.List([nnx.Linear(4, 4, **kwargs), nnx.Linear(4, 4, **kwargs)])
        self.norm = nnx.BatchNorm(4, use_running_average=True, **kwargs)
        self.up = nnx.ConvTranspose(4, 4, (3,), 2, padding="VALID", **kwargs)

    def __call__(self, x):
        """Run it."""
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.up(self.norm(x))


class TorchBlock(nn.Module):
    """As `Block`."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm, self.up = nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 4, 3, 2)

    def forward(self, x):
        """Run it."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.up(self.norm(x.movedim(-1, 1))).movedim(1, -1)


def test_a_transposed_convolution_is_not_guessed():
    """As many inputs as outputs and a name of its own: no shape tells which of the two it is."""
    model, reference = Block(nnx.Rngs(0)), fresh(TorchBlock())
    state = nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    for convert in (
        lambda **options: from_torch(reference.state_dict(), state, **options),
        lambda **options: to_torch(state, reference.state_dict(), **options),
    ):
        with pytest.raises(ValueError, match=r"conv_transposes: got None, where 'up' .* may be"):
            convert()
        # What the error says: the paths of those, or () if there are none.
        same_shapes = [jax.tree.map(np.shape, convert(conv_transposes=c)) for c in (["up"], ())]
        assert same_shapes[0] == same_shapes[1]


@pytest.mark.parametrize(
    ("layer", "kernel", "clear"),
    [
        ("Conv_0", (3, 4, 4), True),
        ("ConvTranspose_0", (3, 4, 4), True),
        ("block/Conv_12", (3, 3, 2, 2), True),
        ("CheckpointConvTranspose_0", (3, 4, 4), False),
        ("up", (1, 1, 4, 4), False),
        ("up", (2, 1, 1), False),
        ("up", (3, 4, 5), True),
        ("depthwise", (3, 3, 1, 8), True),
        ("grouped", (3, 2, 2), False),
    ],
)
def test_which_convolutions_are_clear(layer, kernel, clear):
    *window, i, o = kernel
    ends = (i, o) if "Transpose" in layer else (o, i)
    state = {layer.replace("/", ".") + ".weight": RNG.random((*ends, *window))}
    like = {layer: {"kernel": np.zeros(kernel)}}
    if clear:
        assert from_torch(state, like)[layer]["kernel"].shape == kernel
    else:
        with pytest.raises(ValueError, match="conv_transposes: got None"):
            from_torch(state, like)
        from_torch(state, like, conv_transposes=())


def test_the_statistics_of_a_convolution_alone_are_not_guessed():
    """A transposed one has its window reversed, and here no kernel is there to rule it out."""
    second = RNG.random((8, 4, 3))
    state, like = {"up": {"second": second}}, {"up": {"statistics": {"second": (3, 4, 8)}}}
    like = jax.tree.map(np.zeros, like, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.raises(ValueError, match="conv_transposes: got None, where 'up'"):
        from_torch(state, like)
    for transposed in ((), ["up"]):
        found = from_torch(state, like, conv_transposes=transposed)["up"]["statistics"]["second"]
        expected = np.moveaxis(second, 2, 0).swapaxes(1, 2)
        assert same(found, np.ascontiguousarray(expected[:: -1 if transposed else 1]))
    both = {"up": {"second": second, "weight": RNG.random((8, 4, 3))}}
    from_torch(
        both, {"up": {"statistics": like["up"]["statistics"], "kernel": np.zeros((3, 4, 8))}}
    )


def test_pooled_images_need_no_shape():
    """As many inputs as a layer before has outputs, or no convolution at all."""
    like = {"Conv_0": {"kernel": (3, 1, 8)}, "Dense_0": {"kernel": (8, 32)},
            "Dense_1": {"kernel": (32, 5)}}  # fmt: skip
    like = jax.tree.map(np.zeros, like, is_leaf=lambda x: isinstance(x, tuple))
    state = {"0.weight": (8, 1, 3), "1.weight": (32, 8), "2.weight": (5, 32)}
    from_torch({name: RNG.random(shape) for name, shape in state.items()}, like)


@pytest.mark.parametrize("pure", [False, True])
def test_nnx(pure):
    """Its states and their pure dicts; the same names need not be given."""
    model, reference, x = Block(nnx.Rngs(0)), fresh(TorchBlock()), RNG.standard_normal((2, 5, 4))
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    like = nnx.to_pure_dict(state) if pure else state
    new = from_torch(reference.state_dict(), like, conv_transposes=["up"])
    assert jax.tree.structure(new) == jax.tree.structure(like)
    nnx.update(model, new)
    assert close(model(x), reference(torch.from_numpy(x)).detach().numpy())
    again = to_torch(nnx.state(model), reference.state_dict(), conv_transposes=["up"])
    assert same(again, arrays(dict(reference.state_dict())))


def test_boxed_parameters():
    layer = fn.Dense(3, kernel_init=fn.with_partitioning(fn.initializers.ones, (None, "x")), **F64)
    like = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((2, 5)))
    reference = fresh(nn.Linear(5, 3))
    found = from_torch(reference.state_dict(), like)["params"]["kernel"]
    assert isinstance(found, fn.Partitioned)
    assert same(found.value, reference.weight.detach().numpy().T)
    assert same(to_torch({"kernel": found}, {"weight": reference.weight})["weight"], found.value.T)


# Names.


def chain(*widths):
    """(params of Flax, state_dict) of dense layers."""
    pairs = list(pairwise(widths))
    params = {
        f"Dense_{n}": {"kernel": np.zeros(p), "bias": np.zeros(p[1])} for n, p in enumerate(pairs)
    }
    state = {}
    for n, (i, o) in enumerate(pairs):
        state |= {f"{2 * n}.weight": RNG.random((o, i)), f"{2 * n}.bias": RNG.random(o)}
    return params, state


def test_names_that_only_the_shapes_give():
    params, state = chain(5, 4, 4, 3)
    found = from_torch(state, params)
    assert all(
        (found[f"Dense_{n}"]["kernel"].T == state[f"{2 * n}.weight"]).all() for n in range(3)
    )
    params, state = chain(5, 4, 4, 4, 3)
    with pytest.raises(
        ValueError, match=r"names: got None.*'Dense_1' fits '2', '4'\), expected {path"
    ):
        from_torch(state, params)


@pytest.mark.parametrize(
    "names",
    [
        {f"Dense_{n}": str(2 * n) for n in range(4)},
        lambda path: str(2 * int(path.removeprefix("Dense_"))),
    ],
    ids=["mapping", "function"],
)
def test_names_that_are_given(names):
    params, state = chain(5, 4, 4, 4, 3)
    found = from_torch(state, params, names=names)
    for n in range(4):
        assert (found[f"Dense_{n}"]["kernel"] == state[f"{2 * n}.weight"].T).all()
        assert (found[f"Dense_{n}"]["bias"] == state[f"{2 * n}.bias"]).all()
    assert same(to_torch(found, state, names=names), state)


def test_a_name_for_all_below_and_for_an_entry():
    params = {"enc": {"a": {"kernel": np.zeros((2, 2))}, "b": {"kernel": np.zeros((2, 2))}},
              "token": np.zeros((1, 3))}  # fmt: skip
    state = {"net.enc.a.weight": RNG.random((2, 2)), "net.enc.last.weight": RNG.random((2, 2)),
             "net.cls": RNG.random((1, 3))}  # fmt: skip
    names = {"enc": "net.enc", "enc/b": "net.enc.last", "token": "net.cls"}
    found = from_torch(state, params, names=names)
    assert (found["enc"]["b"]["kernel"] == state["net.enc.last.weight"].T).all()
    assert (found["token"] == state["net.cls"]).all()
    assert same(to_torch(found, state, names=names), state)


CONV = {"c": {"kernel": np.zeros((3, 3, 4, 8))}}


@pytest.mark.parametrize(
    ("state", "like", "options", "message"),
    [
        ({"a.weight": (3, 5), "b.weight": (3, 5)}, {"a": {"kernel": (5, 3)}}, {"names": {}},
         "tree: got 'b.weight', which no layer of Flax has, expected every entry once; give"),
        ({"a.weight": (3, 5)}, {"a": {"kernel": (5, 3), "bias": (3,)}}, {"names": {}},
         "tree: got no 'a.bias', expected every entry once; give the layers their PyTorch names"),
        ({"a.weight": (3, 5), "b": (1,)}, {"c": {"kernel": (5, 3)}}, {"names": {"c": "d"}},
         "tree: got 'a.weight', 'b', which no layer of Flax has and no 'd.weight', expected"),
        ({"a.weight": (3, 5)}, {"a": {"kernel": (3, 5)}}, {"names": {}},
         "tree: got shape (3, 5) for 'a.weight', expected (5, 3) for 'a/kernel' of shape (3, 5)"),
        ({"a.weight": (4, 8, 3, 3)}, {"a": {"kernel": (3, 3, 4, 8)}}, {},
         "tree: got shape (4, 8, 3, 3) for 'a.weight', expected (8, 4, 3, 3)"),
        ({"a.weight": (4, 8, 3)}, {"a": {"kernel": (3, 4, 8)}}, {"conv_transposes": ["b"]},
         "conv_transposes: got 'b', expected a path of the Flax tree: 'a'"),
        ({"a.weight": (3, 8)}, {"a": {"kernel": (8, 3)}}, {"flattened": {"a": (3, 2, 4)}},
         "flattened: got (3, 2, 4) for 'a' with inputs (8,), expected the shape"),
        ({"a.weight": (3, 8)}, {"a": {"kernel": (8, 3)}}, {"flattened": {"b": (2, 2, 2)}},
         "flattened: got 'b', expected a path of the Flax tree: 'a'"),
        ({"a.weight": (3, 3)}, {"a": {"kernel": (3, 3)}, "b": {"kernel": (3, 3)}},
         {"names": {"b": "a"}},
         "names: got 'a.weight' for 'a/kernel', 'b/kernel', expected each name once"),
        ({"a.weight": (3, 3)}, {"b": {"kernel": (3, 3)}, "c": {"kernel": (3, 3)}}, {},
         "names: got None, where shapes alone do not say which layer is which (2 layers, 1 names), "
         "expected {path: name} for the paths 'b', 'c' and the PyTorch names 'a', or a function"),
        ({"a.weight": (3, 5)}, {"b": {"kernel": (5, 4)}}, {},
         "names: got None, where shapes alone do not say which layer is which ('b' fits none)"),
    ],
)  # fmt: skip
def test_errors(state, like, options, message):
    zeros = partial(jax.tree.map, np.zeros, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.raises(ValueError, match=re.escape(message)):
        from_torch(zeros(state), zeros(like), **options)
    with pytest.raises(ValueError, match=re.escape(re.sub("^tree", "like", message))):
        to_torch(zeros(like), zeros(state), **options)


def test_masked_layers_have_no_counterpart():
    stats = {"scalars": np.zeros(8), "mask": np.ones((3, 2, 2))}
    state = {name: value for name, value in stats.items() if name != "mask"}
    with pytest.raises(ValueError, match="got no 'mask', expected every entry once"):
        from_torch(state, stats, names={})


# Statistics: taken in both frameworks on the same data, then converted.

RULES = {
    "default": {},
    "uniform, layer": {"weighting": "uniform", "scale": "layer"},
    "error, standardized": {"weighting": "error", "step_size": "standardized"},
    "centered only": {"scale": "none"},
    "some rows": {"statistics_rows": 2},
    "in bfloat16": {"statistics_dtype": "bfloat16"},
}


def flax_statistics(make, rule, state, batches, options):
    """(before, after a step on each batch) with the weights of a state_dict."""
    x = batches[0]
    layer = flax_layer(make, jaxnorm.linen, gate="relu", rule=jaxnorm.Rule(**rule))
    like = jax.eval_shape(layer.init, jax.random.key(0), x)
    variables = from_torch(state, like, **options)
    stats = jaxnorm.linen.init_statistics(layer, variables, x)

    # Less time in the compiler than two steps would gain.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(stats, x):
        def loss(stats):
            z = layer.apply({**variables, "neuron_stats": stats}, x)
            return (jax.nn.relu(z) ** 2).sum()

        return jaxnorm.update_statistics(stats, jax.grad(loss)(stats))

    for x in batches:
        stats = step(stats, x)
    return jax.tree.map(jnp.zeros_like, stats), stats


def torch_statistics(reference, rule, batches):
    """The optimizer's entry after steps that move nothing."""
    torchnorm.convert(reference, gates={"": "relu"}, rule=torchnorm.Rule(**rule))
    reference.train()
    optimizer = torch.optim.SGD(reference.parameters(), 0.0)
    optimizer = torchnorm.optim.in_neuron_coordinates(optimizer, reference)
    for x in batches:
        optimizer.zero_grad()
        (reference(torch.from_numpy(x)).relu() ** 2).sum().backward()
        optimizer.step()
    return arrays(optimizer.state_dict()["neuron_stats"][""]), optimizer


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, "default") for name in DENSE | CONVOLUTIONS | TRANSPOSED),
        *((name, rule) for name in ("dense", "conv 2d") for rule in RULES if rule != "default"),
    ],
)
def test_statistics(name, rule):
    make, reference, shape = (DENSE | CONVOLUTIONS | TRANSPOSED)[name]
    batches = RNG.standard_normal((2, *shape)) + 1  # the second about the mean of the first
    reference, options = fresh(reference()), conv_transposes(name)
    state = {name: value.clone() for name, value in reference.state_dict().items()}
    like, stats = flax_statistics(make, RULES[rule], state, batches, options)
    if name == "out of heads":
        batches = batches.reshape(2, 5, 6)
    images = batches if name in DENSE else map(channels_first, batches)
    found, optimizer = torch_statistics(reference, RULES[rule], images)
    converted = from_torch(found, like, **options)
    assert jax.tree.structure(converted) == jax.tree.structure(stats)
    for (field, value), other in zip(
        jax.tree_util.tree_leaves_with_path(stats), jax.tree.leaves(converted), strict=True
    ):
        # (Where nothing was summed about its own mean, zeros are zeros.)
        assert close(other, value) if np.any(value) else not np.any(other), field
    # And back, to the last bit.
    again = to_torch(converted, found, **options)
    assert same(
        again, {n: t.float().numpy() if n.startswith("packed") else t for n, t in found.items()}
    )
    state = optimizer.state_dict()
    optimizer.load_state_dict(state | {"neuron_stats": {"": tensors(again)}})


def test_parameters_and_statistics_at_once():
    """The two collections of linen are a state_dict and the statistics together."""
    reference = nn.Sequential(
        torchnorm.Linear(5, 4, gate="relu"), nn.ReLU(), torchnorm.Linear(4, 4, gate=None)
    )
    optimizer = torchnorm.optim.in_neuron_coordinates(
        torch.optim.SGD(reference.parameters(), 0.1), reference
    )
    reference(torch.rand(8, 5)).sum().backward()
    optimizer.step()

    class Net(fn.Module):
        @fn.compact
        def __call__(self, x):
            x = fn.relu(jaxnorm.linen.Dense(4, gate="relu")(x))
            return jaxnorm.linen.Dense(4, gate=None)(x)

    x = jnp.ones((2, 5), jnp.float32)
    variables = Net().init(jax.random.key(0), x)
    like = {**variables, "neuron_stats": jaxnorm.linen.init_statistics(Net(), variables, x)}
    both = dict(reference.state_dict()) | optimizer.state_dict()["neuron_stats"]
    found = from_torch(both, like)
    assert same(found["params"]["Dense_1"]["kernel"], reference[2].weight.detach().numpy().T)
    second = reference[0].neuron_stats.read().second.detach().numpy()
    assert same(found["neuron_stats"]["Dense_0"]["statistics"].second, second.T)
    assert same(to_torch(found, both), arrays(both))


def test_moments_of_an_optimizer():
    """They have the structure of the parameters: mu and nu, or a trace."""
    params, state = chain(5, 4, 4, 3)
    adam = optax.adam(0.1).init(params)[0]
    moment = {name: RNG.random(value.shape) for name, value in state.items()}
    mu = from_torch(moment, adam.mu)
    assert same(mu["Dense_1"]["kernel"], moment["2.weight"].T.copy())
    assert same(to_torch(mu, moment), moment)
    masked = optax.masked(optax.trace(0.9), {**dict.fromkeys(params, True), "Dense_0": False})
    trace = masked.init(params).inner_state.trace
    few = {name: value for name, value in moment.items() if not name.startswith("0")}
    found = from_torch(few, trace)
    assert same(found["Dense_2"]["kernel"], moment["4.weight"].T.copy())


@pytest.mark.parametrize("shape", [(5, 3), (3, 5, 3), (3, 2, 4, 4), (2, 3, 2, 4, 5)])
def test_the_layouts_of_the_proof(shape):
    """`implementations.weights`, which the matrix uses where no JAX is installed, says the same."""
    kernel = RNG.random(shape)
    ends = {"inputs": shape[-2], "outputs": shape[-1]}
    weight = weights.to_torch(kernel, **ends)
    told = {"conv_transposes": ()}
    assert same(to_torch({"kernel": kernel}, {"weight": weight}, **told)["weight"], weight)
    assert same(from_torch({"weight": weight}, {"kernel": kernel}, **told)["kernel"], kernel)


def test_bfloat16():
    """NumPy has none of its own, and `torch.from_numpy` takes none."""
    layer = nn.Linear(5, 3, dtype=torch.bfloat16)
    like = {"kernel": jnp.zeros((5, 3)), "bias": jnp.zeros(3)}
    found = from_torch(layer.state_dict(), like)
    assert found["kernel"].dtype == found["bias"].dtype == jnp.bfloat16
    assert same(found["kernel"].T.astype(np.float32), layer.weight.detach().float().numpy())
    state = tensors(to_torch(found, layer.state_dict()))
    twin = nn.Linear(5, 3, dtype=torch.bfloat16)
    twin.load_state_dict(state)
    assert torch.equal(twin.weight, layer.weight)
    assert torch.equal(twin.bias, layer.bias)


def test_results_are_new_and_writable():
    """Neither side sees the other's changes, and `torch.from_numpy` does not warn."""
    params, state = chain(3, 3)
    found = from_torch(state, params)
    found["Dense_0"]["kernel"][:] = 7
    assert not (state["0.weight"] == 7).any()
    back = to_torch(jax.tree.map(jnp.asarray, found), state)
    torch.from_numpy(back["0.bias"]).fill_(9)
    assert not (found["Dense_0"]["bias"] == 9).any()
