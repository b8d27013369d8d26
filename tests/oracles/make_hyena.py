"""Writes hyena.npz: the Hyena operator of HyenaDNA as `multimolecule` computes it.

Run ``python -m tests.oracles.make_hyena`` with the extra `oracles`.
"""

import torch
from multimolecule import HyenaDnaConfig
from multimolecule.models.hyenadna.modeling_hyenadna import HyenaDnaOperator

from tests.oracles.freeze import save, values_and_gradients

BATCH, LENGTH, WIDTH = 2, 40, 4

torch.set_default_dtype(torch.float64)  # sines of ten times their input amplify rounding
torch.manual_seed(0)
config = HyenaDnaConfig(
    hidden_size=WIDTH, max_position_embeddings=LENGTH + 10, filter_order=8, filter_emb_dim=7
)
layer = HyenaDnaOperator(config)
with torch.no_grad():
    for parameter in layer.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    # Ours has no such biases.
    layer.in_proj.bias.zero_()
    layer.out_proj.bias.zero_()
x_BLD = torch.randn(BATCH, LENGTH, WIDTH)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH)
save(
    "hyena",
    ["multimolecule"],
    {"x": x_BLD, "weight": weight_BLD, **dict(layer.named_parameters())}
    | values_and_gradients(layer, x_BLD, weight_BLD),
)
