"""Dense layers, convolutions, pooling, recurrence, attention, embeddings, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as fn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from parity_tests.differences.row import Row


def key() -> Any:
    """Always the same."""
    return jax.random.key(0)


def params(layer: fn.Module, *shape: int) -> Any:
    """The parameters of a layer of Flax for inputs of ones."""
    return layer.init(key(), jnp.ones(shape))["params"]


def seeded(make: Callable[[], Any]) -> Any:
    """A module of PyTorch, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def shape_of(array: Any) -> tuple[int, ...]:
    """As a tuple."""
    return tuple(array.shape)


def apply(layer: fn.Module, kernel: Any, x: Any) -> np.ndarray:
    """A layer of Flax without bias on one image of one channel."""
    y = layer.apply({"params": {"kernel": jnp.asarray(kernel)}}, jnp.asarray(x)[None, :, None])
    return np.asarray(y)[0, :, 0]


def run(layer: Any, weight: Any, x: Any) -> np.ndarray:
    """A module of PyTorch without bias on one image of one channel."""
    layer.weight.data = torch.tensor(weight)[None, None]
    return layer(torch.tensor(x)[None, None]).detach().numpy()[0, 0]


def half(value: Any) -> float:
    """To two digits, for what is drawn."""
    return round(float(value), 2)


def embedding() -> Any:
    """The first table of an embedding of Flax."""
    return fn.Embed(512, 64).init(key(), jnp.ones(1, int))["params"]["embedding"]


def masked_attention() -> float:
    """Flax: the weight of the one position of two at which the mask is True."""
    x = jnp.ones((1, 2, 4)).at[0, 1].set(2.0)
    seen: dict[str, Any] = {}

    def attend(query: Any, key: Any, value: Any, mask: Any = None, **_: Any) -> Any:
        weights = fn.dot_product_attention_weights(query, key, mask=mask)
        seen["weights"] = weights
        return jnp.einsum("...hqk,...khd->...qhd", weights, value)

    layer = fn.MultiHeadDotProductAttention(1, attention_fn=attend)
    mask = jnp.array([[[[True, False]] * 2]])
    layer.init_with_output(key(), x, mask=mask)
    return float(seen["weights"][0, 0, 0, 0])


def attention_with_mask() -> float:
    """The same in PyTorch."""
    x = torch.tensor([[[1.0] * 4, [2.0] * 4]])
    mask = torch.tensor([[True, False]] * 2)
    _, weights = seeded(lambda: nn.MultiheadAttention(4, 1, batch_first=True))(
        x, x, x, attn_mask=mask
    )
    return float(weights[0, 0, 0])


def cell_params(cell: Any) -> Any:
    """The parameters of a recurrent cell of Flax for 3 inputs."""
    carry = cell.initialize_carry(key(), (1, 3))
    return cell.init(key(), carry, jnp.ones((1, 3)))["params"]


def biases(cell: Any) -> int:
    """How many biases a recurrent cell of Flax has."""
    return sum(each["bias"].size for each in cell_params(cell).values() if "bias" in each)


def biases_of(module: Any) -> int:
    """The same in PyTorch."""
    return sum(p.numel() for name, p in module.named_parameters() if "bias" in name)


def recurrent_kernels() -> float:
    """Flax: how far the recurrent kernel of a gate is from orthogonal at the start."""
    kernel = cell_params(fn.LSTMCell(5))["hi"]["kernel"]
    return half(jnp.abs(kernel @ kernel.T - jnp.eye(5)).max())


def recurrent_weights() -> float:
    """The same in PyTorch."""
    weight = seeded(lambda: nn.LSTMCell(3, 5)).weight_hh.detach()[:5]
    return half((weight @ weight.T - torch.eye(5)).abs().max())


def pooled(pool: Callable[..., Any], **kwargs: Any) -> int:
    """The length that a pooling of Flax makes of 6."""
    return pool(jnp.arange(6.0).reshape(1, 6, 1), (2,), **kwargs).shape[1]


LAYOUT = "`jaxnorm.from_torch`, `to_torch`"
INIT = "the initializers"

ROWS = [
    Row("Dense of 3 inputs, 5 outputs: kernel",
        lambda: shape_of(params(fn.Dense(5), 1, 3)["kernel"]),
        lambda: shape_of(nn.Linear(3, 5).weight), LAYOUT),
    Row("Conv of 2 channels, 4 outputs, window 3 x 5: kernel",
        lambda: shape_of(params(fn.Conv(4, (3, 5)), 1, 7, 7, 2)["kernel"]),
        lambda: shape_of(nn.Conv2d(2, 4, (3, 5)).weight), LAYOUT),
    Row("ConvTranspose of the same: kernel",
        lambda: shape_of(params(fn.ConvTranspose(4, (3, 5)), 1, 7, 7, 2)["kernel"]),
        lambda: shape_of(nn.ConvTranspose2d(2, 4, (3, 5)).weight), LAYOUT),
    Row("Dense: standard deviation of the first kernel, times the root of its 512 inputs",
        lambda: half(params(fn.Dense(256), 1, 512)["kernel"].std() * 512**0.5),
        lambda: half(seeded(lambda: nn.Linear(512, 256)).weight.std() * 512**0.5), INIT),
    Row("Dense: largest first bias, times the same",
        lambda: half(abs(params(fn.Dense(256), 1, 512)["bias"]).max() * 512**0.5),
        lambda: half(seeded(lambda: nn.Linear(512, 256)).bias.abs().max() * 512**0.5), INIT),
    Row("Embedding of 64 features: standard deviation of the first table",
        lambda: half(embedding().std()),
        lambda: half(seeded(lambda: nn.Embedding(512, 64)).weight.std()), INIT),
    Row("Embedding: an index that is too large",
        lambda: fn.Embed(2, 1).init_with_output(key(), jnp.array([5]))[0][0, 0],
        lambda: nn.Embedding(2, 1)(torch.tensor([5])), ""),
    Row("Conv with window 3, padding not given: length of 6",
        lambda: len(apply(fn.Conv(1, (3,), use_bias=False), np.ones((3, 1, 1)), np.ones(6))),
        lambda: len(run(nn.Conv1d(1, 1, 3, bias=False), np.ones(3), np.ones(6))), "`padding`"),
    Row("Conv with window 3, stride 2, SAME against `padding=1`: first sum over 0, 1, 2, ...",
        lambda: apply(fn.Conv(1, (3,), strides=2, use_bias=False), np.ones((3, 1, 1)),
                      np.arange(6.0))[0],
        lambda: run(nn.Conv1d(1, 1, 3, 2, 1, bias=False), np.ones(3), np.arange(6.0))[0],
        "`padding=1` in Flax, too: SAME pads (0, 1)"),
    Row('Conv with stride 2, "SAME"', lambda: len(apply(
        fn.Conv(1, (3,), strides=2, use_bias=False), np.ones((3, 1, 1)), np.ones(6))),
        lambda: nn.Conv1d(1, 1, 3, 2, padding="same"), "pad before"),
    Row("ConvTranspose with kernel 1, 2, 3 on a single 1: first output",
        lambda: apply(fn.ConvTranspose(1, (3,), padding="VALID", use_bias=False),
                      np.array([1.0, 2.0, 3.0])[:, None, None], np.ones(1))[0],
        lambda: run(nn.ConvTranspose1d(1, 1, 3, bias=False), [1.0, 2.0, 3.0], [1.0])[0],
        "`transpose_kernel=True`, or reversed"),
    Row("ConvTranspose with window 3, stride 2, padding not given: length of 5",
        lambda: len(apply(fn.ConvTranspose(1, (3,), strides=(2,), use_bias=False),
                          np.ones((3, 1, 1)), np.ones(5))),
        lambda: len(run(nn.ConvTranspose1d(1, 1, 3, 2, bias=False), np.ones(3), np.ones(5))),
        "`padding`"),
    Row("average pooling with window 2, stride not given: length of 6",
        lambda: pooled(fn.avg_pool), lambda: F.avg_pool1d(torch.ones(1, 1, 6), 2).shape[2],
        "`strides`"),
    Row("maximum pooling, the same", lambda: pooled(fn.max_pool),
        lambda: F.max_pool1d(torch.ones(1, 1, 6), 2).shape[2], "`strides`"),
    Row("Dropout: rate if not given", lambda: fn.Dropout().rate,  # type: ignore[call-arg]
        lambda: nn.Dropout().p, "give it"),
    Row("Dropout in a forward pass that says nothing about its mode",
        lambda: fn.Dropout(0.5).apply({}, jnp.ones(2)),
        lambda: "drops" if nn.Dropout(0.5).training else "keeps",
        "`deterministic=` and a key; `train()`, `eval()`"),
    Row("LSTM with 5 neurons: biases", lambda: biases(fn.LSTMCell(5)),
        lambda: biases_of(nn.LSTMCell(3, 5)), "the sum of PyTorch's two is Flax's one"),
    Row("GRU with 5 neurons: biases", lambda: biases(fn.GRUCell(5)),
        lambda: biases_of(nn.GRUCell(3, 5)), "two of PyTorch's are sums, but for the candidate"),
    Row("LSTM: arrays of kernels",
        lambda: sum("kernel" in each for each in cell_params(fn.LSTMCell(5)).values()),
        lambda: sum("weight" in n for n, _ in nn.LSTMCell(3, 5).named_parameters()),
        "PyTorch stacks the gates i, f, g, o"),
    Row("LSTM: how far a gate's first recurrent kernel is from orthogonal", recurrent_kernels,
        recurrent_weights, INIT),
    Row("multi-head attention: weight of the position at which a boolean mask is True",
        masked_attention, attention_with_mask, "the other way round"),
    Row("PReLU: first slope",
        lambda: fn.PReLU().init(key(), jnp.ones(1))["params"]["negative_slope"],
        lambda: nn.PReLU().weight.detach(), INIT),
]  # fmt: skip
