"""The functions of PyTorch that causes rewrite, and the names of their arguments in order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
#: `torch.max_pool2d` is what `F.max_pool2d` dispatches to.
MAXIMA = (
    F.max_pool1d,
    F.max_pool2d,
    F.max_pool3d,
    torch.max_pool1d,
    torch.max_pool2d,
    torch.max_pool3d,
)
NORMALIZATIONS = (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm)
SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax)
FLATTEN = (torch.flatten, Tensor.flatten, Tensor.reshape, torch.reshape, Tensor.view)
CONCATENATE = (torch.cat, torch.concat, torch.concatenate)
PRODUCTS = (
    torch.mul,
    torch.div,
    Tensor.mul,
    Tensor.div,
    Tensor.mul_,
    Tensor.div_,
    Tensor.__mul__,
    Tensor.__rmul__,
    Tensor.__truediv__,
    Tensor.__imul__,
    Tensor.__itruediv__,
)
MATRIX_PRODUCTS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)
SUMS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)

SPLITS = (torch.chunk, Tensor.chunk, torch.split, Tensor.split)
ZEROS = (torch.zeros, torch.zeros_like, Tensor.new_zeros)
ONES = (torch.ones, torch.ones_like, Tensor.new_ones)

_NAMES: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.pad: ("input", "pad", "mode", "value"),
    F.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.instance_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("use_input_stats", "momentum", "eps"),
    ),
    F.gelu: ("input",),
    F.leaky_relu: ("input", "negative_slope", "inplace"),
    F.scaled_dot_product_attention: (
        *("query", "key", "value", "attn_mask", "dropout_p", "is_causal"),
    ),
    F.interpolate: (
        *("input", "size", "scale_factor", "mode", "align_corners"),
        *("recompute_scale_factor", "antialias"),
    ),
    F.multi_head_attention_forward: (
        *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight"),
        *("in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight"),
        *("out_proj_bias", "training", "key_padding_mask", "need_weights", "attn_mask"),
    ),
}
_NAMES |= {
    f: ("input", "weight", "bias", "stride", "padding", "dilation", "groups") for f in CONVOLUTIONS
}
_NAMES |= {
    f: ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    for f in TRANSPOSED
}
_NAMES |= {
    f: ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    for f in AVERAGES
}
_NAMES |= {
    f: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode") for f in MAXIMA
}
_NAMES |= {f: ("input", "dim") for f in SOFTMAX}
_NAMES |= {f: ("tensors", "dim") for f in CONCATENATE}
_NAMES |= {f: ("input", "other") for f in (*PRODUCTS, *SUMS)}


def names_of(function: Any) -> tuple[str, ...]:
    """The names of its arguments, as far as they are known."""
    return _NAMES.get(function, ())
