"""Networks for images: of transformers, timm and torchvision."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.models.tasks import patterns
from parity_tests.models.torch_networks import model
from parity_tests.models.torch_networks.build import ENCODER, hugging_face, library
from parity_tests.models.torch_networks.model import (
    given,
    identity,
    itself,
    normal,
    quick_gelu,
    returned,
    several,
)

Model = partial(model.Model, needs=("transformers",))
Timm = partial(model.Model, needs=("timm",), task=patterns((3, 32, 32)))
TorchVision = partial(model.Model, needs=("torchvision",), task=patterns((3, 32, 32)))


def images(size: int) -> Callable[[], dict[str, torch.Tensor]]:
    """Some, as transformers name them."""
    return lambda: {"pixel_values": torch.randn(3, 3, size, size, dtype=torch.float64)}


def _efficient_net() -> nn.Module:
    """Depthwise separable and inverted residual blocks, with squeeze and excite."""
    timm = importlib.import_module("timm")
    blocks = [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e4_c12_se0.25"]]
    arguments = importlib.import_module("timm.models._efficientnet_builder").decode_arch_def(blocks)
    return timm.models.EfficientNet(
        arguments, num_classes=3, stem_size=8, num_features=16, act_layer=nn.SiLU
    )


_RESNET = {
    "*shortcut.convolution": given(F.relu, "activation", 2),
    # The last convolution of a block has no activation of its own: the sum has one.
    "*.layer.2.convolution": given(F.relu, "activation", 3),
    "*convolution": given(F.relu, "activation"),
}
#: The branch that is changed ends in an activation, the other begins a block or does not.
_SHUFFLE_NET = {
    "conv1.0": returned(F.relu, "1"),
    "conv5.0": returned(F.relu, "1"),
    "*branch1.2": returned(F.relu, "3"),
    "*branch2.0": returned(F.relu, "1"),
    "*branch2.5": returned(F.relu, "6"),
}
_MOBILE_NET_V3 = {
    "features.0.0": returned(F.hardswish, "1"),
    "features.12.0": returned(F.hardswish, "1"),
    "features.1.block.0.0": returned(F.relu, "1"),
    "features.[23].block.[01].0": returned(F.relu, "1"),
    "features.*.block.[01].0": returned(F.hardswish, "1"),
    "*.fc1": itself(F.relu),
    "*.fc2": itself(F.hardsigmoid),
    "classifier.0": itself(F.hardswish),
}
_MLP = {"*.fc1": itself(F.gelu)}

MODELS = (
    Model(
        "ResNet (bottleneck)",
        hugging_face(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 2],
            num_labels=3,
        ),
        images(32),
        _RESNET,
        task=patterns((3, 32, 32), "pixel_values"),
    ),
    Model(
        "RegNet (squeeze and excite)",
        hugging_face(
            "RegNetForImageClassification",
            "RegNetConfig",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            groups_width=4,
            num_labels=3,
        ),
        images(32),
        {
            "*attention.0": itself(F.relu),
            "*attention.2": itself(torch.sigmoid),
            "*.layer.3.convolution": given(F.relu, "activation", 3),
            "*shortcut.convolution": given(F.relu, "activation", 2),
            "*convolution": given(F.relu, "activation"),
        },
        task=patterns((3, 32, 32), "pixel_values"),
    ),
    Model(
        "MobileNetV2",
        hugging_face(
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            depth_multiplier=0.25,
            image_size=32,
            num_labels=3,
            finegrained_output=False,
        ),
        images(32),
        {
            "*reduce_1x1*": itself(identity),
            "*convolution": returned(F.relu6, "normalization"),
        },
        task=patterns((3, 32, 32), "pixel_values"),
    ),
    Model(
        "ConvNeXt",
        hugging_face(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
            num_labels=3,
            layer_scale_init_value=0.1,
        ),
        images(32),
        {"*pwconv1": itself(F.gelu)},
        task=patterns((3, 32, 32), "pixel_values"),
    ),
    Model(
        "SegFormer",
        hugging_face(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=8,
            num_labels=3,
        ),
        images(16),
        {
            "*dwconv.dwconv": itself(F.gelu),
            "*linear_fuse": returned(F.relu, "batch_norm"),
        },
        task=patterns((3, 16, 16), "pixel_values"),
    ),
    Model(
        "ViT",
        hugging_face(
            "ViTForImageClassification",
            "ViTConfig",
            num_labels=3,
            **ENCODER,
            image_size=16,
            patch_size=8,
        ),
        images(16),
        {"*fc1": itself(F.gelu)},
        task=patterns((3, 16, 16), "pixel_values"),
    ),
    Model(
        "CLIP, vision",
        hugging_face("CLIPVisionModel", "CLIPVisionConfig", **ENCODER, image_size=16, patch_size=8),
        images(16),
        {"*fc1": itself(quick_gelu)},
        task=patterns((3, 16, 16), "pixel_values"),
    ),
    Model(
        "Swin",
        hugging_face(
            "SwinForImageClassification",
            "SwinConfig",
            num_labels=3,
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
        ),
        images(16),
        {"*fc1": itself(F.gelu), "*intermediate.dense": itself(F.gelu)},
        task=patterns((3, 16, 16), "pixel_values"),
    ),
    Model(
        "VideoMAE",
        hugging_face(
            "VideoMAEForVideoClassification",
            "VideoMAEConfig",
            **ENCODER,
            image_size=16,
            patch_size=8,
            num_frames=4,
            num_labels=3,
        ),
        lambda: {"pixel_values": torch.randn(2, 4, 3, 16, 16, dtype=torch.float64)},
        {"*fc1": itself(F.gelu), "*intermediate.dense": itself(F.gelu)},
        task=patterns((4, 3, 16, 16), "pixel_values"),
    ),
    Timm(
        "EfficientNet (timm)",
        _efficient_net,
        normal(3, 3, 32, 32),
        {
            "conv_stem": returned(F.silu, "bn1.drop"),
            "conv_head": returned(F.silu, "bn2.drop"),
            "blocks.0*conv_dw": returned(F.silu, "bn1.drop"),
            "blocks.[1-9]*conv_pw": returned(F.silu, "bn1.drop"),
            "*conv_dw": returned(F.silu, "bn2.drop"),
            "*conv_reduce": itself(F.silu),
            "*conv_expand": itself(torch.sigmoid),
        },
    ),
    Timm(
        "Swin (timm)",
        library(
            "timm",
            "create_model",
            "swin_tiny_patch4_window7_224",
            num_classes=3,
            img_size=16,
            patch_size=2,
            window_size=4,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(2, 2),
        ),
        normal(3, 3, 16, 16),
        _MLP,
        task=patterns((3, 16, 16)),
    ),
    Timm(
        "MLP-Mixer (timm)",
        library(
            "timm.models",
            "MlpMixer",
            num_classes=3,
            img_size=16,
            patch_size=4,
            embed_dim=16,
            num_blocks=2,
        ),
        normal(3, 3, 16, 16),
        _MLP,
        task=patterns((3, 16, 16)),
    ),
    Timm(
        "ResNetV2 (BiT, timm)",
        library(
            "timm.models",
            "ResNetV2",
            layers=(1, 1),
            channels=(128, 128),
            num_classes=3,
            stem_chs=32,
        ),
        normal(3, 3, 32, 32),
        {
            "*.conv1": returned(F.relu, "norm2.drop"),
            "*.conv2": returned(F.relu, "norm3.drop"),
            "*": several,
        },
    ),
    TorchVision(
        "DenseNet (torchvision)",
        library(
            "torchvision.models",
            "DenseNet",
            growth_rate=4,
            block_config=(2, 2),
            num_init_features=8,
            num_classes=3,
        ),
        normal(3, 3, 32, 32),
        {
            "features.conv0": returned(F.relu, "norm0"),
            "*denselayer?.conv1": returned(F.relu, "norm2"),
            "*denselayer?.conv2": several,
            "*transition?.conv": several,
        },
    ),
    TorchVision(
        "ShuffleNetV2 (torchvision)",
        library(
            "torchvision.models",
            "ShuffleNetV2",
            [1, 1, 1],
            [8, 16, 16, 16, 32],
            num_classes=3,
        ),
        normal(3, 3, 32, 32),
        _SHUFFLE_NET,
    ),
    TorchVision(
        "SqueezeNet (torchvision)",
        library("torchvision.models", "squeezenet1_1", num_classes=3),
        normal(2, 3, 32, 32),
        {"*": itself(F.relu)},
    ),
    TorchVision(
        "MobileNetV3 (torchvision)",
        library("torchvision.models", "mobilenet_v3_small", num_classes=3, width_mult=0.25),
        normal(3, 3, 32, 32),
        _MOBILE_NET_V3,
    ),
)
