"""Networks of diffusers."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from parity_tests.models.tasks import clean
from parity_tests.models.torch_networks import model
from parity_tests.models.torch_networks.build import library
from parity_tests.models.torch_networks.model import (
    gelu_tanh,
    glu,
    itself,
    returned,
    several,
    there,
)

Model = partial(model.Model, needs=("diffusers",))
_diffusers = partial(library, "diffusers")
_UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16)}


def _noisy(name: str, channels: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    image = torch.randn(2, channels, 8, 8, dtype=torch.float64)
    return {name: image, "timestep": torch.tensor([3, 9]), **more}


_RESNET_BLOCKS = {
    "*time_embedding.linear_1": itself(F.silu),
    # Every block applies the same activation to it.
    "*time_embedding.linear_2": itself(F.silu),
    "*resnets.*.conv1": returned(F.silu, "norm2"),
    "*.ff.net.0.proj": glu(F.gelu, 1),
    "conv_in": several,
    "*resnets.*.conv2": several,
    "*resnets.*.conv_shortcut": several,
    "*samplers.*.conv": several,
    "*.to_out.0": several,
    "*.proj_out": several,
    "*time_emb_proj": several,
}

#: The last block's outputs are summed, normalized, activated.
_LAST = {
    "up_blocks.1.resnets.1.conv2": there(F.silu, "conv_norm_out"),
    "up_blocks.1.resnets.1.conv_shortcut": there(F.silu, "conv_norm_out"),
}
_LAST_OF_TWO = {
    "encoder.mid_block.resnets.1.conv2": there(F.silu, "encoder.conv_norm_out"),
    "decoder.up_blocks.1.resnets.1.conv2": there(F.silu, "decoder.conv_norm_out"),
}

MODELS = (
    Model(
        "UNet2D (diffusers)",
        _diffusers(
            "UNet2DModel",
            **_UNET,
            in_channels=1,
            out_channels=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
        ),
        lambda: _noisy("sample", 1),
        {**_LAST, **_RESNET_BLOCKS},
        task=clean(
            (1, 8, 8), "sample", lambda rng, count: {"timestep": rng.integers(0, 10, count)}
        ),
    ),
    Model(
        "UNet2DCondition (diffusers)",
        _diffusers(
            "UNet2DConditionModel",
            **_UNET,
            in_channels=2,
            out_channels=2,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
            cross_attention_dim=8,
        ),
        lambda: _noisy(
            "sample", 2, encoder_hidden_states=torch.randn(2, 5, 8, dtype=torch.float64)
        ),
        {
            "up_blocks.1.attentions.1.proj_out": there(F.silu, "conv_norm_out"),
            **_RESNET_BLOCKS,
        },
        task=clean(
            (2, 8, 8),
            "sample",
            lambda rng, count: {
                "timestep": rng.integers(0, 10, count),
                "encoder_hidden_states": rng.normal(size=(count, 5, 8)),
            },
        ),
    ),
    Model(
        "DiT (diffusers)",
        _diffusers(
            "DiTTransformer2DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=2,
            out_channels=2,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
        ),
        lambda: _noisy("hidden_states", 2, class_labels=torch.tensor([1, 2])),
        {
            "*ff.net.0.proj": itself(gelu_tanh),
            "*timestep_embedder.linear_1": itself(F.silu),
            "*timestep_embedder.linear_2": returned(F.silu, "emb", 3),
        },
        task=clean(
            (2, 8, 8),
            "hidden_states",
            lambda rng, count: {
                "timestep": rng.integers(0, 10, count),
                "class_labels": np.zeros(count, np.int64),
            },
        ),
    ),
    Model(
        "AutoencoderKL (diffusers)",
        _diffusers(
            "AutoencoderKL",
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=2,
        ),
        lambda: {"sample": torch.randn(2, 1, 8, 8, dtype=torch.float64)},
        {**_LAST_OF_TWO, **_RESNET_BLOCKS},
        task=clean((1, 8, 8), "sample"),
    ),
)
