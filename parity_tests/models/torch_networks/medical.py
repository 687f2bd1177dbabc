"""Networks for medical images, of MONAI."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F

from parity_tests.models.tasks import clean, parts, patterns
from parity_tests.models.torch_networks import model
from parity_tests.models.torch_networks.build import library
from parity_tests.models.torch_networks.model import (
    given,
    identity,
    itself,
    linear_pieces,
    normal,
    returned,
    several,
    there,
)

Model = partial(model.Model, needs=("monai",))
_monai = partial(library, "monai.networks.nets")
_UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_CLASSES = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
_LEAKY = returned(lambda u: F.leaky_relu(u, 0.1), "adn.N")

MODELS = (
    Model(
        "UNet (MONAI)",
        _monai("UNet", **_UNET, channels=(4, 8, 16), strides=(2, 2), num_res_units=1),
        normal(2, 1, 16, 16),
        {"model.2.1.*": itself(identity), "*conv": linear_pieces("adn.A")},
        task=parts((1, 16, 16)),
    ),
    Model(
        "BasicUNet (MONAI)",
        _monai("BasicUNet", **_UNET, features=(4, 4, 8, 8, 8, 4)),
        normal(2, 1, 32, 32),
        {"*convs.conv_?.conv": _LEAKY, "conv_0.conv_?.conv": _LEAKY},
        task=parts((1, 32, 32)),
    ),
    Model(
        "SegResNet (MONAI)",
        _monai("SegResNet", **_UNET, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
        normal(2, 1, 16, 16),
        {
            "*.conv1.conv": returned(F.relu, "norm2", 2),
            "up_layers.0.0.conv2.conv": there(F.relu, "conv_final.0"),
            "convInit.conv": several,
            "*.conv2.conv": several,
            "down_layers.1.0.conv": several,
            "up_samples.0.0.conv": several,
        },
        task=parts((1, 16, 16)),
    ),
    Model(
        "DenseNet (MONAI)",
        _monai("DenseNet", **_CLASSES, init_features=8, growth_rate=4, block_config=(2, 2)),
        normal(2, 1, 32, 32),
        {
            "features.conv0": returned(F.relu, "norm0"),
            "*.layers.conv1": returned(F.relu, "norm2"),
            "*.layers.conv2": several,
            "*transition?.conv": several,
        },
        task=patterns((1, 32, 32)),
    ),
    Model(
        "UNETR (MONAI, 3-d)",
        _monai(
            "UNETR",
            in_channels=1,
            out_channels=2,
            img_size=16,
            feature_size=4,
            hidden_size=16,
            mlp_dim=24,
            num_heads=2,
        ),
        normal(2, 1, 16, 16, 16),
        {
            "*mlp.linear1": itself(F.gelu),
            "*.conv1.conv": returned(F.leaky_relu, "norm1", 2),
            # Of a negative number, whether before or after the activation, the slope is the same.
            "*.conv[23].conv": given(F.leaky_relu, "lrelu", 2),
        },
        task=parts((1, 16, 16, 16)),
        needs=("monai", "einops"),
    ),
    Model(
        "AutoEncoder (MONAI)",
        _monai(
            "AutoEncoder",
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(4, 8),
            strides=(2, 2),
        ),
        normal(2, 1, 16, 16),
        {"decode.decode_1.*": itself(identity), "*.conv": linear_pieces("adn.A")},
        task=clean((1, 16, 16)),
    ),
)
