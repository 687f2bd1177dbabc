"""Language models of the transformers package, and adapters to one."""

from __future__ import annotations

import importlib
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.models.tasks import chain, first_token, gaps, translation
from parity_tests.models.torch_networks import model
from parity_tests.models.torch_networks.build import ENCODER, LLAMA, TOKENS, WEIGHTS, hugging_face
from parity_tests.models.torch_networks.model import gelu_tanh, glu, identity, itself, times

Model = partial(model.Model, needs=("transformers",), task=chain())
Adapted = partial(model.Model, needs=("transformers", "peft"), task=chain())


def tokens() -> dict[str, torch.Tensor]:
    """Three short texts."""
    return {"input_ids": torch.randint(3, 90, (3, 7))}


def both() -> dict[str, torch.Tensor]:
    """The same and what a decoder has written."""
    return {**tokens(), "decoder_input_ids": torch.randint(3, 90, (3, 5))}


def adapted(**options: object) -> nn.Module:
    """A small Llama with low-rank adapters."""
    peft = importlib.import_module("peft")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], **options)
    return peft.get_peft_model(hugging_face("LlamaForCausalLM", "LlamaConfig", **LLAMA)(), settings)


_SWIGLU = {
    "*gate_proj": times(F.silu, "up_proj", identity),
    "*up_proj": times(identity, "gate_proj", F.silu),
}
_GPT2 = {**TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2}

MODELS = (
    Model(
        "BERT",
        hugging_face("BertForMaskedLM", "BertConfig", **ENCODER, **TOKENS),
        tokens,
        {"*intermediate.dense": itself(F.gelu), "*transform.dense": itself(F.gelu)},
        task=gaps(),
    ),
    Model(
        "DistilBERT",
        hugging_face(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            **TOKENS,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=24,
            initializer_range=WEIGHTS,
        ),
        tokens,
        {"*lin1": itself(F.gelu), "pre_classifier": itself(F.relu)},
        task=first_token(),
    ),
    Model(
        "GPT-2",
        hugging_face("GPT2LMHeadModel", "GPT2Config", **_GPT2, initializer_range=WEIGHTS),
        tokens,
        {"*c_fc": itself(gelu_tanh)},
    ),
    Model(
        "GPT-2, small initial weights",
        hugging_face("GPT2LMHeadModel", "GPT2Config", **_GPT2),
        tokens,
        {"*c_fc": itself(gelu_tanh)},
    ),
    Model(
        "T5 (gated GELU)",
        hugging_face(
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
        lambda: {**tokens(), "decoder_input_ids": torch.randint(3, 90, (3, 5))},
        {
            "*wi_0": times(gelu_tanh, "wi_1", identity),
            "*wi_1": times(identity, "wi_0", gelu_tanh),
        },
        task=translation(),
    ),
    Model(
        "Llama",
        hugging_face("LlamaForCausalLM", "LlamaConfig", **LLAMA),
        tokens,
        _SWIGLU,
    ),
    Model(
        "Qwen2",
        hugging_face("Qwen2ForCausalLM", "Qwen2Config", **LLAMA),
        tokens,
        _SWIGLU,
    ),
    Model(
        "Phi-3 (fused SwiGLU)",
        hugging_face("Phi3ForCausalLM", "Phi3Config", **LLAMA),
        tokens,
        {"*gate_up_proj": glu(F.silu)},
    ),
    Model(
        "ALBERT (one layer, twice)",
        hugging_face("AlbertForMaskedLM", "AlbertConfig", **ENCODER, **TOKENS, embedding_size=8),
        tokens,
        {"*ffn": itself(gelu_tanh), "predictions.dense": itself(gelu_tanh)},
        task=gaps(),
    ),
    Model(
        "Gemma 2 (capped logits)",
        hugging_face("Gemma2ForCausalLM", "Gemma2Config", **LLAMA, head_dim=8),
        tokens,
        {
            "*gate_proj": times(gelu_tanh, "up_proj", identity),
            "*up_proj": times(identity, "gate_proj", gelu_tanh),
        },
    ),
    Model(
        "Mixtral (experts)",
        hugging_face(
            "MixtralForCausalLM",
            "MixtralConfig",
            **LLAMA,
            num_local_experts=4,
            experts_implementation="eager",
        ),
        tokens,
        {},
    ),
    Model(
        "Mamba",
        hugging_face(
            "MambaForCausalLM",
            "MambaConfig",
            vocab_size=99,
            hidden_size=16,
            state_size=4,
            num_hidden_layers=2,
        ),
        tokens,
        {},
    ),
    Model(
        "RWKV",
        hugging_face(
            "RwkvForCausalLM",
            "RwkvConfig",
            vocab_size=99,
            hidden_size=16,
            num_hidden_layers=2,
            attention_hidden_size=16,
        ),
        tokens,
        {
            "*attention.receptance": itself(torch.sigmoid),
            "*feed_forward.key": itself(lambda u: F.relu(u) ** 2),
            "*feed_forward.receptance": times(torch.sigmoid, "value", identity),
            "*feed_forward.value": times(identity, "receptance", torch.sigmoid),
        },
    ),
    Adapted("Llama with LoRA (peft)", lambda: adapted(lora_dropout=0.1), tokens, {}),
    Adapted("Llama with DoRA (peft)", lambda: adapted(use_dora=True), tokens, {}),
)
