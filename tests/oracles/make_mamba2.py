"""Writes mamba2.npz: Mamba-2 as `transformers` computes it.

Run ``python -m tests.oracles.make_mamba2`` with the extra `oracles`.
"""

import torch
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from tests.oracles.freeze import save, values_and_gradients

BATCH, LENGTH, WIDTH, HEADS, HEAD_DIM, STATES = 2, 21, 6, 3, 4, 5

torch.manual_seed(0)
config = Mamba2Config(
    hidden_size=WIDTH,
    num_heads=HEADS,
    head_dim=HEAD_DIM,
    state_size=STATES,
    n_groups=1,
    chunk_size=8,
    layer_norm_epsilon=1e-6,
    num_hidden_layers=1,
    use_cache=False,
)
layer = Mamba2Mixer(config, 0)
with torch.no_grad():
    for parameter in layer.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
x_BLD = torch.randn(BATCH, LENGTH, WIDTH)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH)
save(
    "mamba2",
    ["transformers"],
    {"x": x_BLD, "weight": weight_BLD, **dict(layer.named_parameters())}
    | values_and_gradients(layer, x_BLD, weight_BLD),
)
