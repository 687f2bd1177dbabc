"""Networks for signals: speech, time series, sequences of vectors; and a flow."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.models.tasks import clean, patterns, waves
from parity_tests.models.torch_networks import model
from parity_tests.models.torch_networks.build import ENCODER, hugging_face
from parity_tests.models.torch_networks.model import given, itself, normal

Model = partial(model.Model, needs=("transformers",))


class Tagger(nn.Module):
    """A recurrent network and a head, as PyTorch has them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sequences [N, T, 6] to sequences."""
        return self.head(self.lstm(self.encoder(x).tanh())[0])


MODELS = (
    Model(
        "Whisper, encoder",
        hugging_face(
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
        task=patterns((8, 20), "input_features"),
    ),
    Model(
        "Wav2Vec2",
        hugging_face(
            "Wav2Vec2ForCTC",
            "Wav2Vec2Config",
            **ENCODER,
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
            "*conv_layers.*.conv": given(F.gelu, "activation"),
            "*intermediate_dense": itself(F.gelu),
        },
        task=patterns((400,), "input_values"),
    ),
    model.Model(
        "nn.TransformerEncoder",
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2, enable_nested_tensor=False
        ),
        lambda: (torch.randn(3, 5, 16, dtype=torch.float64),),
        {"*linear1": itself(F.relu)},
        task=clean((5, 16)),
    ),
    Model(
        "PatchTST",
        hugging_face(
            "PatchTSTForPrediction",
            "PatchTSTConfig",
            num_input_channels=2,
            context_length=16,
            patch_length=4,
            patch_stride=4,
            num_hidden_layers=1,
            d_model=16,
            num_attention_heads=2,
            ffn_dim=24,
            prediction_length=4,
        ),
        lambda: {"past_values": torch.randn(3, 16, 2, dtype=torch.float64)},
        {"*ff.0": itself(F.gelu)},
        task=waves(),
    ),
    model.Model(
        "LSTM",
        Tagger,
        normal(3, 5, 6),
        {"encoder": itself(torch.tanh)},
        task=clean((5, 6)),
    ),
)
