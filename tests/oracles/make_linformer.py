"""Writes linformer.npz: self-attention of the `linformer` package on fewer tokens than it takes.

Run ``python -m tests.oracles.make_linformer`` with the extra `oracles`.
"""

import torch
from linformer import LinformerSelfAttention

from tests.oracles.freeze import save, values_and_gradients

BATCH, LENGTH, LONGEST, WIDTH, HEADS, SLOTS = 2, 12, 16, 8, 2, 3

torch.manual_seed(0)
layer = LinformerSelfAttention(WIDTH, LONGEST, k=SLOTS, heads=HEADS).double()
torch.nn.init.zeros_(layer.to_out.bias)
x_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
save(
    "linformer",
    ["linformer"],
    {"x": x_BLD, "weight": weight_BLD, **dict(layer.named_parameters())}
    | values_and_gradients(layer, x_BLD, weight_BLD),
)
