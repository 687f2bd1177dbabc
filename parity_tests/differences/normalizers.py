"""BatchNorm, GroupNorm, LayerNorm, InstanceNorm, RMSNorm, WeightNorm."""

from __future__ import annotations

from typing import Any

import flax.linen as fn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
from flax import nnx
from torch import nn
from torch.nn.utils import parametrizations

from parity_tests.differences.row import Row

#: Two samples of one channel, mean 1, variance 1 or 2.
PAIR = np.array([[0.0], [2.0]])
#: The same, far from 0: variance 0.25.
FAR = np.array([[10000.0], [10001.0]], np.float32)


def running(x: np.ndarray, name: str, **knobs: Any) -> Any:
    """A running statistic of Flax after one batch."""
    layer = fn.BatchNorm(use_running_average=False, **knobs)
    variables = layer.init(jax.random.key(0), x)
    return layer.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"][name][0]


def buffer(x: np.ndarray, name: str, **knobs: Any) -> Any:
    """A running statistic of PyTorch after one batch."""
    module = nn.BatchNorm1d(x.shape[1], dtype=torch.from_numpy(x).dtype, **knobs)
    module(torch.from_numpy(x))
    return getattr(module, name)[0]


def averaged() -> float:
    """The running mean after batches of mean 1 and 4."""
    module = nn.BatchNorm1d(1, momentum=None, dtype=torch.float64)
    for x in (PAIR, PAIR + 3):
        module(torch.from_numpy(x))
    return float(module.running_mean)  # type: ignore[arg-type]


def synchronized() -> Any:
    """The output for the second of two samples on two devices."""
    layer = fn.BatchNorm(False, axis_name="a", use_scale=False, use_bias=False)
    state = {"mean": jnp.zeros(1), "var": jnp.ones(1)}

    def call(x: Any) -> Any:
        return layer.apply({"batch_stats": state}, x, mutable=["batch_stats"])[0]

    return jax.vmap(call, axis_name="a")(jnp.asarray(PAIR)[:, None])[1, 0, 0]


def synchronized_by_torch() -> Any:
    """The output of PyTorch's, in a group of one process."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        return nn.SyncBatchNorm(1, dtype=torch.float64)(torch.from_numpy(PAIR))[1, 0]
    finally:
        dist.destroy_process_group()


def output(layer: fn.Module, x: Any, **kwargs: Any) -> Any:
    """What a layer of Flax makes of x."""
    return layer.init_with_output(jax.random.key(0), jnp.asarray(x), **kwargs)[0]


def parameters(layer: fn.Module, x: np.ndarray) -> int:
    """How many numbers a layer of Flax learns."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.asarray(x))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes.get("params", {})))


def of_module(module: nn.Module) -> int:
    """How many numbers a module of PyTorch learns."""
    return sum(p.numel() for p in module.parameters())


def channels_of_torch() -> int:
    """For how many channels a lazy BatchNorm of PyTorch decides."""
    module = nn.LazyBatchNorm2d()
    module(torch.ones(2, 3, 5, 4))
    return module.num_features


#: So small that an epsilon shows: mean 0, variance 1e-6.
SMALL = np.array([[[-1e-3], [1e-3]]])


def epsilon(y: Any, moment: float = 1e-6) -> float:
    """What was added to a second moment of 1e-6, from the output for +-1e-3."""
    return 1e-6 / float(np.square(np.asarray(y, np.float64)).max()) - moment


def small(x: np.ndarray = SMALL, shape: tuple[int, ...] = (1, 1, 2)) -> torch.Tensor:
    """The same for PyTorch."""
    return torch.from_numpy(x).reshape(shape)


def channels_last_group_norm() -> str:
    """The largest output for values of 10000 and 10001, in a layout that asks for channels last."""
    x = torch.from_numpy(np.tile(FAR.reshape(1, 1, 2, 1), (1, 2, 1, 2)))
    largest = float(nn.GroupNorm(1, 2)(x.to(memory_format=torch.channels_last)).abs().max())
    return "1" if abs(largest - 1) < 0.01 else "not 1"  # what, is a matter of the order of sums


def gradient_of_one_instance() -> float:
    """Error of PyTorch's input gradient for one sample and a cotangent with channels last."""
    x = torch.arange(24.0).sin().reshape(1, 4, 3, 2).requires_grad_()
    delta = torch.arange(24.0).cos().reshape(1, 4, 3, 2)
    module, found = nn.InstanceNorm2d(4), []
    for cotangent in (delta, delta.to(memory_format=torch.channels_last)):
        found.append(torch.autograd.grad(module(x), x, cotangent)[0])
    return round(float((found[1] - found[0]).abs().max() / found[0].abs().max()), 1)


def normed_weight(v: list[float]) -> float:
    """The length of a weight of PyTorch that is made from v."""
    layer = nn.Linear(2, 1)
    layer.weight.data[:] = torch.tensor(v)
    weight: Any = parametrizations.weight_norm(layer).weight
    return float(weight.norm())


def normed_kernel(v: list[float]) -> float:
    """The length of a kernel of Flax that is made from v."""
    layer = fn.WeightNorm(fn.Dense(1, kernel_init=lambda *_: jnp.array(v)[:, None]))
    y = jnp.eye(2)
    return float(jnp.linalg.norm(layer.init_with_output(jax.random.key(0), y)[0]))


def length_of_transposed() -> int:
    """How many lengths PyTorch learns for a transposed convolution of 2 inputs and 3 outputs."""
    layer: Any = parametrizations.weight_norm(nn.ConvTranspose1d(2, 3, 1))
    return layer.parametrizations.weight.original0.numel()


def lengths_of_flax() -> int:
    """The same in Flax."""
    layer = fn.WeightNorm(fn.ConvTranspose(3, (1,)))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 1, 2)))
    return shapes["params"]["layer_instance/kernel/scale"].size


def nnx_weight_norm() -> nnx.WeightNorm:
    """Around a layer of 4 inputs and 3 outputs."""
    return nnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))


def learned_by_nnx() -> int:
    """How many numbers an optimizer of nnx sees."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx_weight_norm(), nnx.Param)))


def changed_by_a_call() -> bool:
    """Whether a call of nnx changes the parameter of the layer inside."""
    layer: Any = nnx_weight_norm()
    before = np.asarray(layer.layer_instance.kernel[...])
    layer(jnp.ones((1, 4)))
    return not np.array_equal(before, layer.layer_instance.kernel[...])


def changed_by_a_call_of_torch() -> bool:
    """The same in PyTorch."""
    layer: Any = parametrizations.weight_norm(nn.Linear(4, 3))
    before = layer.parametrizations.weight.original1.detach().clone()
    layer(torch.ones(1, 4))
    return not bool(torch.equal(before, layer.parametrizations.weight.original1))


CONVENTION = '`convention="torch"` or `"flax"` of our layers'
FAST = "`use_fast_variance=False`; ours has it"

ROWS = [
    Row("BatchNorm: running mean after a first batch of mean 1", lambda: running(PAIR, "mean"),
        lambda: buffer(PAIR, "running_mean"), CONVENTION),
    Row("BatchNorm, `momentum=0.3`: the same", lambda: running(PAIR, "mean", momentum=0.3),
        lambda: buffer(PAIR, "running_mean", momentum=0.3), "m in Flax is 1 - m in PyTorch"),
    Row("BatchNorm: variance stored of the batch 0, 2", lambda: running(PAIR, "var", momentum=0.0),
        lambda: buffer(PAIR, "running_var", momentum=1.0), CONVENTION),
    Row("BatchNorm, `momentum=None`: running mean after means 1 and 4",
        lambda: running(PAIR, "mean", momentum=None), averaged, "ours has it in Flax, too"),
    Row("BatchNorm, float32: variance of 10000, 10001 (0.25; 0.5 times 2 / 1)",
        lambda: running(FAR, "var", momentum=0.0),
        lambda: buffer(FAR, "running_var", momentum=1.0), FAST),
    Row("BatchNorm, training on a batch of one",
        lambda: output(fn.BatchNorm(False), PAIR[1:])[0, 0],
        lambda: nn.BatchNorm1d(1)(torch.ones(1, 1)), "ours raises in both"),
    Row("BatchNorm of [2, 3, 5, 4]: channels",
        lambda: parameters(fn.BatchNorm(False, use_bias=False), np.ones((2, 3, 5, 4))),
        channels_of_torch, "the last axis in Flax"),
    Row("synchronized BatchNorm on the CPU: output for the second of 0, 2", synchronized,
        synchronized_by_torch, "`process_group` of ours"),
    Row("LayerNorm: epsilon", lambda: epsilon(output(fn.LayerNorm(), SMALL[..., 0])),
        lambda: epsilon(nn.LayerNorm(2, dtype=torch.float64)(small()).detach()), CONVENTION),
    Row("GroupNorm: epsilon", lambda: epsilon(output(fn.GroupNorm(1), SMALL)),
        lambda: epsilon(nn.GroupNorm(1, 1, dtype=torch.float64)(small()).detach()), CONVENTION),
    Row("InstanceNorm: epsilon", lambda: epsilon(output(fn.InstanceNorm(), SMALL)),
        lambda: epsilon(nn.InstanceNorm1d(1)(small())), CONVENTION),
    Row("RMSNorm, float64: epsilon", lambda: epsilon(output(fn.RMSNorm(), SMALL[..., 0])),
        lambda: epsilon(nn.RMSNorm(2, dtype=torch.float64)(small()).detach()), CONVENTION),
    Row("RMSNorm, float32: epsilon",
        lambda: epsilon(output(fn.RMSNorm(), np.float32(SMALL[..., 0]))),
        lambda: epsilon(nn.RMSNorm(2)(small().float()).detach()), CONVENTION),
    Row("RMSNorm, bfloat16: epsilon, about",
        lambda: round(epsilon(np.asarray(output(fn.RMSNorm(dtype=jnp.bfloat16), jnp.bfloat16(
            SMALL[..., 0])), np.float32)), 7),
        lambda: round(epsilon(nn.RMSNorm(2, dtype=torch.bfloat16)(
            small().bfloat16()).detach().float()), 7), "PyTorch's is float32's"),
    Row("LayerNorm, float32: largest output for 10000, 10001 (1)",
        lambda: output(fn.LayerNorm(), FAR.T).max(),
        lambda: round(float(nn.LayerNorm(2)(torch.from_numpy(FAR.T)).max()), 2), FAST),
    Row("GroupNorm, float32: the same", lambda: output(fn.GroupNorm(1), FAR.T[..., None]).max(),
        lambda: round(float(nn.GroupNorm(1, 1)(torch.from_numpy(FAR.T[None])).max()), 2), FAST),
    Row("GroupNorm, float32, on the CPU in the memory format `channels_last`: the same",
        lambda: output(fn.GroupNorm(1), np.tile(FAR.reshape(1, 2, 1, 1), (1, 1, 2, 2))).max(),
        channels_last_group_norm, "ours lays space flat"),
    Row("LayerNorm over the last two axes [3, 4], as one would write it: numbers learned",
        lambda: parameters(fn.LayerNorm(reduction_axes=(-2, -1)), np.ones((2, 3, 4))),
        lambda: of_module(nn.LayerNorm([3, 4])), "`feature_axes=(-2, -1)`"),
    Row("GroupNorm: groups if not told, of 64 channels",
        lambda: fn.GroupNorm().num_groups, lambda: nn.GroupNorm(num_channels=64),  # type: ignore[call-arg]
        "give them"),
    Row("InstanceNorm: numbers learned for 4 channels",
        lambda: parameters(fn.InstanceNorm(), np.ones((2, 3, 4))),
        lambda: of_module(nn.InstanceNorm1d(4)), CONVENTION),
    Row("InstanceNorm: a single position",
        lambda: output(fn.InstanceNorm(), np.ones((2, 1, 1))).max(),
        lambda: nn.InstanceNorm1d(1)(torch.ones(2, 1, 1)), "ours raises in both"),
    Row("InstanceNorm of one sample on the CPU, cotangent in `channels_last`: error of the input "
        "gradient, relative", lambda: 0.0, gradient_of_one_instance, "ours lays space flat"),
    Row("InstanceNorm with running statistics",
        lambda: fn.InstanceNorm(track_running_stats=True),  # type: ignore[call-arg]
        lambda: len(list(nn.InstanceNorm1d(4, track_running_stats=True).buffers())),
        "ours has them in Flax, too"),
    Row("WeightNorm of v = (3, 4): length at the start", lambda: normed_kernel([3.0, 4.0]),
        lambda: normed_weight([3.0, 4.0]), CONVENTION),
    Row("WeightNorm of v = 0: length", lambda: normed_kernel([0.0, 0.0]),
        lambda: normed_weight([0.0, 0.0]), CONVENTION),
    Row("WeightNorm of a transposed convolution of 2 inputs, 3 outputs: lengths", lengths_of_flax,
        length_of_transposed, "`feature_axes=-2`"),
    Row("WeightNorm (nnx) of 4 inputs, 3 outputs and a bias: numbers learned", learned_by_nnx,
        lambda: of_module(parametrizations.weight_norm(nn.Linear(4, 3))), "ours learns lengths"),
    Row("WeightNorm (nnx): a call changes v", changed_by_a_call, changed_by_a_call_of_torch,
        "ours does not"),
]  # fmt: skip
