"""Networks of other people in PyTorch, and what the gate of each of their layers really sees.

Every model is built from a configuration (nothing is downloaded). What a gate sees is said here by
hand, for each architecture, and taken from the framework's own pass, so it does not depend on what
`torchnorm.convert` found out.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Phi = Callable[[torch.Tensor], torch.Tensor]
Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]  # module -> (its first input, its output)
Expectation = Callable[[Seen, str], torch.Tensor]  # -> phi'(u), in the layout of the layer's output


def slope(phi: Phi, u: torch.Tensor) -> torch.Tensor:
    """The derivative of an elementwise function."""
    u = u.detach().clone().requires_grad_()
    (result,) = torch.autograd.grad(phi(u).sum(), u)
    return result


def itself(phi: Phi) -> Expectation:
    """The activation sees the layer's output itself."""
    return lambda seen, name: slope(phi, seen[name][1])


def at(phi: Phi, place: Callable[[str], str], side: int = 0) -> Expectation:
    """The activation sees what another module is given (side 0) or returns (side 1)."""
    return lambda seen, name: slope(phi, seen[place(name)][side])


def times(phi: Phi, other: str, other_phi: Phi) -> Expectation:
    """phi(z) other_phi(z of the other layer), its name's last part replaced."""

    def expected(seen: Seen, name: str) -> torch.Tensor:
        return slope(phi, seen[name][1]) * other_phi(seen[_sibling(name, other)][1])

    return expected


def glu(phi: Phi) -> Expectation:
    """The first half is activated, the second multiplied."""

    def expected(seen: Seen, name: str) -> torch.Tensor:
        a, b = seen[name][1].chunk(2, -1)
        return torch.cat([slope(phi, a) * b, phi(a)], -1)

    return expected


def _sibling(name: str, other: str, up: int = 1) -> str:
    return ".".join([*name.split(".")[:-up], other])


def identity(u: torch.Tensor) -> torch.Tensor:
    """No activation."""
    return u * 1


def quick_gelu(u: torch.Tensor) -> torch.Tensor:
    """CLIP's."""
    return u * torch.sigmoid(1.702 * u)


def _gelu_tanh(u: torch.Tensor) -> torch.Tensor:
    return F.gelu(u, approximate="tanh")


@dataclass(frozen=True)
class Model:
    """One network.

    Attributes:
        name: of the architecture.
        build: () -> the module.
        inputs: () -> its keyword arguments, or a tuple of positional ones.
        seen: {pattern of layers: what their gate sees}, first match; the others see no activation.
        left: how many layers are left alone, of those that own a matrix.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    seen: dict[str, Expectation]
    left: int = 0


def _transformers(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        # Silent about what is missing on this machine: this is about the networks.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = importlib.import_module("transformers")
            library.logging.set_verbosity_error()
            settings = getattr(library, config)(**options)
            place = library
            if not hasattr(library, kind):
                family = config.removesuffix("Config").lower()
                place = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
            return getattr(place, kind)(settings)

    return build


def _tokens() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 90, (3, 7))}


def _images(size: int) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"pixel_values": torch.randn(3, 3, size, size, dtype=torch.float64)}


_TOKENS = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
_ENCODER = {**_SMALL, "num_hidden_layers": 2}
_LLAMA = {**_ENCODER, **_TOKENS, "num_key_value_heads": 1}
_SWIGLU = {
    "*gate_proj": times(F.silu, "up_proj", identity),
    "*up_proj": times(identity, "gate_proj", F.silu),
}
_RESNET = {
    "*shortcut.convolution": at(F.relu, lambda n: _sibling(n, "activation", 2)),
    # The last convolution of a block has no activation of its own: the sum has one.
    "*.layer.2.convolution": at(F.relu, lambda n: _sibling(n, "activation", 3)),
    "*convolution": at(F.relu, lambda n: _sibling(n, "activation")),
}

MODELS = (
    Model(
        "ResNet (bottleneck)",
        _transformers(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 2],
            num_labels=3,
        ),
        _images(32),
        _RESNET,
    ),
    Model(
        "RegNet (squeeze and excite)",
        _transformers(
            "RegNetForImageClassification",
            "RegNetConfig",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            groups_width=4,
        ),
        _images(32),
        {
            "*attention.0": itself(F.relu),
            "*attention.2": itself(torch.sigmoid),
            "*.layer.3.convolution": at(F.relu, lambda n: _sibling(n, "activation", 3)),
            "*shortcut.convolution": at(F.relu, lambda n: _sibling(n, "activation", 2)),
            "*convolution": at(F.relu, lambda n: _sibling(n, "activation")),
        },
    ),
    Model(
        "MobileNetV2",
        _transformers(
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            depth_multiplier=0.25,
            image_size=32,
            finegrained_output=False,
        ),
        _images(32),
        {
            "*reduce_1x1*": itself(identity),
            "*convolution": at(F.relu6, lambda n: _sibling(n, "normalization"), side=1),
        },
    ),
    Model(
        "ConvNeXt",
        _transformers(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
            layer_scale_init_value=0.1,
        ),
        _images(32),
        {"*pwconv1": itself(F.gelu)},
    ),
    Model(
        "SegFormer",
        _transformers(
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
        ),
        _images(16),
        {
            "*dwconv.dwconv": itself(F.gelu),
            "*linear_fuse": at(F.relu, lambda n: _sibling(n, "batch_norm"), side=1),
        },
    ),
    Model(
        "ViT",
        _transformers(
            "ViTForImageClassification", "ViTConfig", **_ENCODER, image_size=16, patch_size=8
        ),
        _images(16),
        {"*fc1": itself(F.gelu)},
        left=1,
    ),
    Model(
        "CLIP, vision",
        _transformers(
            "CLIPVisionModel", "CLIPVisionConfig", **_ENCODER, image_size=16, patch_size=8
        ),
        _images(16),
        {"*fc1": itself(quick_gelu)},
        left=1,
    ),
    Model(
        "BERT",
        _transformers("BertForMaskedLM", "BertConfig", **_ENCODER, **_TOKENS),
        _tokens,
        {"*intermediate.dense": itself(F.gelu), "*transform.dense": itself(F.gelu)},
        left=4,
    ),
    Model(
        "DistilBERT",
        _transformers(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            **_TOKENS,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=24,
        ),
        _tokens,
        {"*lin1": itself(F.gelu), "pre_classifier": itself(F.relu)},
        left=2,
    ),
    Model(
        "GPT-2",
        _transformers("GPT2LMHeadModel", "GPT2Config", **_TOKENS, n_embd=16, n_layer=2, n_head=2),
        _tokens,
        {"*c_fc": itself(_gelu_tanh)},
        left=3,
    ),
    Model(
        "T5 (gated GELU)",
        _transformers(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=99,
            d_model=16,
            d_ff=24,
            d_kv=8,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        ),
        lambda: {**_tokens(), "decoder_input_ids": torch.randint(3, 90, (3, 5))},
        {
            "*wi_0": times(_gelu_tanh, "wi_1", identity),
            "*wi_1": times(identity, "wi_0", _gelu_tanh),
        },
        left=6,
    ),
    Model("Llama", _transformers("LlamaForCausalLM", "LlamaConfig", **_LLAMA), _tokens, _SWIGLU, 1),
    Model("Qwen2", _transformers("Qwen2ForCausalLM", "Qwen2Config", **_LLAMA), _tokens, _SWIGLU, 1),
    Model(
        "Phi-3 (fused SwiGLU)",
        _transformers("Phi3ForCausalLM", "Phi3Config", **_LLAMA),
        _tokens,
        {"*gate_up_proj": glu(F.silu)},
        left=1,
    ),
    Model(
        "Whisper, encoder",
        _transformers(
            "WhisperEncoder",
            "WhisperConfig",
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=24,
            num_mel_bins=8,
            max_source_positions=10,
        ),
        lambda: {"input_features": torch.randn(3, 8, 20, dtype=torch.float64)},
        {"conv?": itself(F.gelu), "*fc1": itself(F.gelu)},
        left=1,
    ),
    Model(
        "Wav2Vec2",
        _transformers(
            "Wav2Vec2ForCTC",
            "Wav2Vec2Config",
            **_ENCODER,
            vocab_size=20,
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm="layer",
            mask_time_prob=0.0,
            layerdrop=0.0,
        ),
        lambda: {"input_values": torch.randn(3, 400, dtype=torch.float64)},
        {
            "*conv_layers.*.conv": lambda seen, name: slope(
                F.gelu, seen[_sibling(name, "activation")][0]
            ),
            "*intermediate_dense": itself(F.gelu),
        },
        left=1,
    ),
    Model(
        "nn.TransformerEncoder",
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2, enable_nested_tensor=False
        ),
        lambda: (torch.randn(3, 5, 16, dtype=torch.float64),),
        {"*linear1": itself(F.relu)},
        left=4,
    ),
)
