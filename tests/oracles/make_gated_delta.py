"""Writes gated_delta.npz: Qwen3-Next's gated delta net as `transformers` computes it.

Run ``python -m tests.oracles.make_gated_delta`` with the extra `oracles`.
"""

import sys
from importlib import import_module

import torch
from transformers import Qwen3NextConfig

from tests.oracles.freeze import save, values_and_gradients

sys.modules["fla"] = None  # its kernels need a GPU; without it, transformers' own torch code runs
qwen3_next = import_module("transformers.models.qwen3_next.modeling_qwen3_next")

BATCH, LENGTH, WIDTH, HEADS = 2, 70, 8, 2  # longer than the 64 tokens of a chunk

torch.manual_seed(0)
config = Qwen3NextConfig(
    hidden_size=WIDTH,
    num_hidden_layers=1,
    layer_types=["linear_attention"],
    linear_num_key_heads=HEADS,
    linear_num_value_heads=HEADS,
    linear_key_head_dim=WIDTH // HEADS,
    linear_value_head_dim=2 * WIDTH // HEADS,
)
layer = qwen3_next.Qwen3NextGatedDeltaNet(config, 0)
with torch.no_grad():
    for parameter in layer.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
x_BLD = torch.randn(BATCH, LENGTH, WIDTH)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH)
save(
    "gated_delta",
    ["transformers"],
    {"x": x_BLD, "weight": weight_BLD, **dict(layer.named_parameters())}
    | values_and_gradients(layer, x_BLD, weight_BLD),
)
