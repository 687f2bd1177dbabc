"""Networks nobody here wrote, converted whole and compared with the oracle, layer by layer.

Every model is built from a configuration (nothing is downloaded) and runs in float64. What the gate
of a layer really sees is said here by hand, for each architecture, and taken from the framework's
own pass, so it does not depend on what `torchnorm.convert` found out.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests import oracle
from parity_tests.tolerances import slice_error

Phi = Callable[[torch.Tensor], torch.Tensor]
Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]  # module -> (its first input, its output)
Expectation = Callable[[Seen, str], torch.Tensor]  # -> phi'(u), in the layout of the layer's output

#: The form of the gradient that the oracle computes, and that needs no optimizer of ours.
PRECONDITIONED = torchnorm.Rule(gradient="preconditioned")


def slope(phi: Phi, u: torch.Tensor) -> torch.Tensor:
    """The derivative of an elementwise function."""
    u = u.detach().clone().requires_grad_()
    (result,) = torch.autograd.grad(phi(u).sum(), u)
    return result


def own(phi: Phi) -> Expectation:
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


def _identity(u: torch.Tensor) -> torch.Tensor:
    return u * 1


def _quick_gelu(u: torch.Tensor) -> torch.Tensor:
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


@dataclass
class Outcome:
    """What was measured on one model; every error is 0 where it should be bitwise."""

    name: str
    report: Any
    error: float = 0.0  # worst slice of a gradient, against the oracle
    worst: str = ""
    compared: int = 0
    unequal: list[str] = field(
        default_factory=list
    )  # what is not bitwise the framework's, and should
    seconds: float = 0.0


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
    "*gate_proj": times(F.silu, "up_proj", _identity),
    "*up_proj": times(_identity, "gate_proj", F.silu),
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
            "*attention.0": own(F.relu),
            "*attention.2": own(torch.sigmoid),
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
            "*reduce_1x1*": own(_identity),
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
        {"*pwconv1": own(F.gelu)},
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
            "*dwconv.dwconv": own(F.gelu),
            "*linear_fuse": at(F.relu, lambda n: _sibling(n, "batch_norm"), side=1),
        },
    ),
    Model(
        "ViT",
        _transformers(
            "ViTForImageClassification", "ViTConfig", **_ENCODER, image_size=16, patch_size=8
        ),
        _images(16),
        {"*fc1": own(F.gelu)},
        left=1,
    ),
    Model(
        "CLIP, vision",
        _transformers(
            "CLIPVisionModel", "CLIPVisionConfig", **_ENCODER, image_size=16, patch_size=8
        ),
        _images(16),
        {"*fc1": own(_quick_gelu)},
        left=1,
    ),
    Model(
        "BERT",
        _transformers("BertForMaskedLM", "BertConfig", **_ENCODER, **_TOKENS),
        _tokens,
        {"*intermediate.dense": own(F.gelu), "*transform.dense": own(F.gelu)},
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
        {"*lin1": own(F.gelu), "pre_classifier": own(F.relu)},
        left=2,
    ),
    Model(
        "GPT-2",
        _transformers("GPT2LMHeadModel", "GPT2Config", **_TOKENS, n_embd=16, n_layer=2, n_head=2),
        _tokens,
        {"*c_fc": own(_gelu_tanh)},
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
            "*wi_0": times(_gelu_tanh, "wi_1", _identity),
            "*wi_1": times(_identity, "wi_0", _gelu_tanh),
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
        {"conv?": own(F.gelu), "*fc1": own(F.gelu)},
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
            "*intermediate_dense": own(F.gelu),
        },
        left=1,
    ),
    Model(
        "nn.TransformerEncoder",
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2, enable_nested_tensor=False
        ),
        lambda: (torch.randn(3, 5, 16, dtype=torch.float64),),
        {"*linear1": own(F.relu)},
        left=4,
    ),
)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """These tensors are too small to share out: on a busy machine, threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build(model: Model, seed: int = 1) -> tuple[nn.Module, Any]:
    """The network in float64 with biases that are not zero, and inputs."""
    torch.manual_seed(seed)
    module = model.build().double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:  # initial values of 0 and 1 would hide mistakes
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.train(), model.inputs()


def call(module: nn.Module, inputs: Any) -> torch.Tensor:
    """The output: always with the same random numbers, for dropout."""
    torch.manual_seed(1)
    out = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    return out if isinstance(out, torch.Tensor) else next(iter(out.values()))


def loss(out: torch.Tensor) -> torch.Tensor:
    """A random cotangent: averages tell nothing behind a normalization."""
    generator = torch.Generator().manual_seed(2)
    return (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()


def gradients(module: nn.Module, inputs: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """(the output, the gradient of every parameter)."""
    module.zero_grad(set_to_none=True)
    out = call(module, inputs)
    loss(out).backward()
    return out.detach(), {name: p.grad for name, p in module.named_parameters()}


def spy(module: nn.Module, inputs: Any) -> tuple[Seen, dict[str, torch.Tensor]]:
    """What every module is given and returns, and the gradient at what it returns."""
    seen: Seen = {}
    errors: dict[str, torch.Tensor] = {}
    handles = []

    def hook(name: str) -> Callable:
        def note(_: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(out, torch.Tensor) and isinstance(first, torch.Tensor):
                seen[name] = first.detach().clone(), out.detach().clone()
                if out.requires_grad:
                    out.register_hook(lambda g: errors.__setitem__(name, g.clone()))

        return note

    for name, part in module.named_modules():
        handles.append(part.register_forward_hook(hook(name), with_kwargs=True))
    gradients(module, inputs)
    for handle in handles:
        handle.remove()
    return seen, errors


def rows_of(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What each neuron reads, [N,I], group by group: explicit patches, channels first."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return [x.reshape(-1, x.shape[-1])]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    assert not isinstance(layer.padding, str)
    how = [layer.kernel_size, layer.dilation, layer.padding, layer.stride]
    if isinstance(layer, nn.Conv1d):
        x, how = x[:, :, None], [(a, b[0]) for a, b in zip((1, 1, 0, 1), how, strict=True)]
    patches = F.unfold(x, *how).transpose(1, 2)  # [images, positions, channels * taps]
    return list(patches.reshape(-1, patches.shape[-1]).chunk(layer.groups, 1))


def expected_gradients(
    layer: nn.Module, x: torch.Tensor, g_z: torch.Tensor, s: torch.Tensor
) -> tuple[np.ndarray, Any]:
    """The oracle's weight gradient, [O, I], and bias gradient of one layer."""
    convolution = isinstance(layer, nn.modules.conv._ConvNd)
    g_z, s = (t.movedim(1, -1) if convolution else t for t in (g_z, s))
    groups = rows_of(layer, x)
    delta = g_z.reshape(-1, g_z.shape[-1]).chunk(len(groups), 1)
    weight = s.abs().reshape(-1, s.shape[-1]).chunk(len(groups), 1)
    bias = layer.bias is not None
    parts = [
        oracle.weight_gradients(a.numpy(), d.numpy(), w.numpy(), oracle.Knobs(), bias=bias)
        for a, d, w in zip(groups, delta, weight, strict=True)
    ]
    kernel = np.concatenate([part[0].T for part in parts])
    if not bias:
        return kernel, None
    biases: list[Any] = [part[1] for part in parts]
    return kernel, np.concatenate(biases)


def measure(model: Model) -> Outcome:
    """Convert, compare with the framework and with the oracle, train one step, revert."""
    start = time.perf_counter()
    module, inputs = build(model)
    reference = copy.deepcopy(module)
    before = copy.deepcopy(module.state_dict())
    report = torchnorm.convert(module, inputs, rule=PRECONDITIONED)
    outcome = Outcome(model.name, report)
    for name, value in module.state_dict().items():
        if not torch.equal(value, before[name]):
            outcome.unequal.append(f"{name} after converting")
    seen, errors = spy(reference, inputs)
    reference.load_state_dict(before)  # the running statistics of a BatchNorm
    reference_out, reference_gradients = gradients(reference, inputs)
    out, found = gradients(module, inputs)
    if not torch.equal(out, reference_out):
        outcome.unequal.append("the output")
    converted = {row.layer for row in report.converted}
    for name, gradient in reference_gradients.items():
        same = gradient is None or torch.equal(gradient, found[name])
        if name.rpartition(".")[0] not in converted and not same:
            outcome.unequal.append(f"the gradient of {name}")
    for row in report.converted:
        _compare(model, outcome, reference.get_submodule(row.layer), row.layer, seen, errors, found)
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    if not call(module, inputs).isfinite().all():
        outcome.unequal.append("finite numbers after a step")
    torchnorm.revert(module)
    for (name, a), (_, b) in zip(module.named_modules(), reference.named_modules(), strict=True):
        if type(a) is not type(b) or set(vars(a)) != set(vars(b)):
            outcome.unequal.append(f"{name} after reverting")
    outcome.seconds = time.perf_counter() - start
    return outcome


def _compare(
    model: Model,
    outcome: Outcome,
    layer: Any,
    name: str,
    seen: Seen,
    errors: dict[str, torch.Tensor],
    found: dict[str, Any],
) -> None:
    """One layer's gradients against the oracle's."""
    expectation = next((e for p, e in model.seen.items() if fnmatchcase(name, p)), own(_identity))
    (x, z), g_z = seen[name], errors[name]
    s = expectation(seen, name)
    if s.shape != z.shape:  # laid out anew on the way: [N, T, C] for [N, C, T]
        s = s.transpose(1, 2)
    kernel, bias = expected_gradients(layer, x, g_z, s)
    actual = found[f"{name}.weight"]
    actual = actual.T if type(layer).__name__ == "Conv1D" else actual.flatten(1)
    compared: dict[str, tuple[Any, Any, tuple[int, ...]]] = {"weight": (actual, kernel, (0,))}
    if bias is not None:
        compared["bias"] = (found[f"{name}.bias"], bias, ())
    for which, (ours, theirs, axes) in compared.items():
        if not np.any(theirs):  # a dead layer, at these initial values
            outcome.unequal += [f"the zero gradient of {name}.{which}"] * bool(ours.any())
            continue
        error = slice_error(ours, theirs, axes=axes)
        outcome.compared += 1
        if error >= outcome.error:
            outcome.error, outcome.worst = error, f"{name}.{which}"


def rows() -> list[dict[str, Any]]:
    """One row of the table for each model."""
    table = []
    for model in MODELS:
        with one_thread():
            outcome = measure(model)
        report = outcome.report
        table.append(
            {
                "model": model.name,
                "framework": "PyTorch",
                "layers": len(report.rows),
                "converted": len(report.converted),
                "deferred": len(report.deferred),
                "unresolved": len(report.unresolved),
                "left alone": len(report.left),
                "worst error": outcome.error,
                "where": outcome.worst,
                "not bitwise": ", ".join(outcome.unequal),
                "seconds": outcome.seconds,
            }
        )
    return table
