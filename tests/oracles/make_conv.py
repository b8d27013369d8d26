"""Writes conv.npz: LFM2's gated short convolution as Hugging Face `transformers` computes it.

Run ``python -m tests.oracles.make_conv`` with the extra `oracles`.
"""

import torch
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from tests.oracles.freeze import save, values_and_gradients

BATCH, LENGTH, WIDTH, TAPS = 2, 11, 8, 3

torch.manual_seed(0)
config = Lfm2Config(
    hidden_size=WIDTH,
    num_attention_heads=1,
    num_key_value_heads=1,
    num_hidden_layers=1,
    layer_types=["conv"],
    conv_L_cache=TAPS,
    conv_bias=False,
)
layer = Lfm2ShortConv(config, 0).double()
x_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
save(
    "conv",
    ["transformers"],
    {"x": x_BLD, "weight": weight_BLD, **dict(layer.named_parameters())}
    | values_and_gradients(layer, x_BLD, weight_BLD),
)
