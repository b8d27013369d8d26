"""Writes linformer.npz: self-attention of the `linformer` package on fewer tokens than it takes."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from linformer import LinformerSelfAttention

BATCH, LENGTH, LONGEST, WIDTH, HEADS, SLOTS = 2, 12, 16, 8, 2, 3

torch.manual_seed(0)
layer = LinformerSelfAttention(WIDTH, LONGEST, k=SLOTS, heads=HEADS).double()
torch.nn.init.zeros_(layer.to_out.bias)
x_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
y_BLD = layer(x_BLD)
(y_BLD * weight_BLD).sum().backward()

arrays = {"x": x_BLD, "weight": weight_BLD, "y": y_BLD, "dx": x_BLD.grad}
for name, parameter in layer.named_parameters():
    arrays |= {name: parameter, f"d{name}": parameter.grad}
np.savez_compressed(
    Path(__file__).with_name("linformer.npz"),
    versions=f"torch {torch.__version__}, linformer {version('linformer')}",
    **{name: array.detach().numpy() for name, array in arrays.items()},
)
