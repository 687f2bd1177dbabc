"""Pairs that nobody here wrote: `python -m parity_tests.port.public`, with transformers before 5.

Those versions ship many models in Flax and in PyTorch. They are built small, from configurations,
and nothing is downloaded. `pip install 'transformers<5'` in an environment of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from parity_tests.port.errors import CannotCompare
from parity_tests.port.verify import verify


class Public(NamedTuple):
    """A model of transformers.

    Attributes:
        package: the folder in `transformers.models`.
        flax: the linen module.
        torch: the module in PyTorch.
        configuration: the class of its configuration.
        knobs: what differs from the configuration's own.
        inputs: names of the inputs.
    """

    package: str
    flax: str
    torch: str
    configuration: str
    knobs: Mapping[str, Any]
    inputs: tuple[str, ...]


_TEXT = ("input_ids", "attention_mask")
_PLACES = (*_TEXT, "position_ids")
_BERT = (*_TEXT, "token_type_ids", "position_ids", "head_mask")
_IMAGE = ("pixel_values",)
_SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "num_labels": 3,
}
_GPT = {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
_VIT = {"image_size": 8, "patch_size": 4} | {
    k: v for k, v in _SMALL.items() if k not in ("vocab_size", "max_position_embeddings")
}
_STAGES = {"embedding_size": 8, "depths": [1, 1], "num_labels": 3}


def _classifier(package: str, name: str, inputs: tuple[str, ...], **knobs: Any) -> Public:
    head = "ForImageClassification" if inputs == _IMAGE else "ForSequenceClassification"
    return Public(package, f"Flax{name}{head}Module", name + head, f"{name}Config", knobs, inputs)


def _language(package: str, name: str, inputs: tuple[str, ...], **knobs: Any) -> Public:
    head, flax = f"{name}ForCausalLM", f"Flax{name}ForCausalLMModule"
    if name == "GPT2":
        head, flax = "GPT2LMHeadModel", "FlaxGPT2LMHeadModule"
    return Public(package, flax, head, f"{name}Config", {**knobs, "use_cache": False}, inputs)


MODELS = (
    _classifier("bert", "Bert", _BERT, **_SMALL),
    _classifier("roberta", "Roberta", _BERT, **_SMALL),
    _classifier("electra", "Electra", _BERT, **_SMALL, embedding_size=8),
    _classifier("albert", "Albert", _BERT[:4], **_SMALL, embedding_size=8),
    _classifier(
        *("distilbert", "DistilBert", _TEXT),
        **{"vocab_size": 30, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        **{"max_position_embeddings": 12, "num_labels": 3},
    ),
    _language("gpt2", "GPT2", _PLACES, **_GPT),
    _language("gptj", "GPTJ", _PLACES, **_GPT, rotary_dim=4),
    _language("opt", "OPT", _PLACES, **_SMALL, ffn_dim=24, word_embed_proj_dim=16),
    _language("bloom", "Bloom", _TEXT, vocab_size=30, hidden_size=16, n_layer=2, n_head=2),
    _language("llama", "Llama", _PLACES, **_SMALL),
    _language("mistral", "Mistral", _PLACES, **_SMALL, num_key_value_heads=1),
    _language("gemma", "Gemma", _PLACES, **_SMALL, num_key_value_heads=1, head_dim=8),
    _classifier("vit", "ViT", _IMAGE, **_VIT),
    _classifier("dinov2", "Dinov2", _IMAGE, **_VIT, mlp_ratio=2),
    _classifier("resnet", "ResNet", _IMAGE, **_STAGES, hidden_sizes=[8, 12], layer_type="basic"),
    _classifier("regnet", "RegNet", _IMAGE, **_STAGES, hidden_sizes=[8, 16], groups_width=4),
)


def build(model: Public, dtype: str) -> tuple[Any, Any, dict[str, Any]]:
    """(the linen module, the PyTorch module, inputs)."""
    import torch
    import transformers

    configuration = getattr(transformers, model.configuration)(**model.knobs)
    package = importlib.import_module(
        f"transformers.models.{model.package}.modeling_flax_{model.package}"
    )
    torch.manual_seed(0)
    flax = getattr(package, model.flax)(configuration, dtype=np.dtype(dtype))
    return flax, getattr(transformers, model.torch)(configuration), _inputs(model, configuration)


def _inputs(model: Public, configuration: Any) -> dict[str, Any]:
    rng, (batch, length) = np.random.default_rng(0), (2, 5)
    mask = np.ones((batch, length), int)
    mask[1, 3:] = 0
    first = 2 if model.package == "roberta" else 0  # RoBERTa's positions begin behind the padding's
    size = getattr(configuration, "image_size", 32)
    every = {
        "input_ids": rng.integers(3, 30, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": np.array([[0, 0, 1, 1, 1]] * batch),
        "position_ids": np.tile(np.arange(first, first + length), (batch, 1)),
        "head_mask": None,
        "pixel_values": rng.normal(size=(batch, 3, size, size)),
    }
    return {name: every[name] for name in model.inputs}


def main(names: list[str]) -> int:
    """Compare the named models, or all, in float64 and, if they depart, in float32.

    Returns:
        0 if all agree, 1 if one departs, 2 if one cannot be compared.
    """
    worst = 0
    for model in MODELS:
        if names and model.package not in names:
            continue
        for dtype in ("float64", "float32"):
            try:
                report = verify(*build(model, dtype), dtype=dtype)  # type: ignore[arg-type]
            except (CannotCompare, ImportError, AttributeError) as error:
                print(f"{model.package}: {error}", file=sys.stderr)
                worst = 2
                break
            print(f"{model.package}, {dtype}: {report}\n", flush=True)
            if report.agree:
                break
            worst = max(worst, int(dtype == "float32"))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
