"""Writes nystrom.npz: attention of the `nystrom-attention` package without its convolution.

One row and one head: the package scales its pseudo-inverse by the largest norm of all. Run
``python -m tests.oracles.make_nystrom`` with the extra `oracles`.
"""

import torch
from nystrom_attention import NystromAttention

from tests.oracles.freeze import save, values_and_gradients

BATCH, LENGTH, WIDTH, LANDMARKS = 1, 20, 6, 5

torch.manual_seed(0)
layer = NystromAttention(
    WIDTH, dim_head=WIDTH, heads=1, num_landmarks=LANDMARKS, residual=False
).double()
torch.nn.init.zeros_(layer.to_out[0].bias)
x_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
torch.set_default_dtype(torch.float64)  # of the identity matrix inside
save(
    "nystrom",
    ["nystrom-attention"],
    {"x": x_BLD, "weight": weight_BLD, **dict(layer.named_parameters())}
    | values_and_gradients(layer, x_BLD, weight_BLD),
)
