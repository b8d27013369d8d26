"""Writes nystrom.npz: attention of the `nystrom-attention` package without its convolution.

One row and one head: the package scales its pseudo-inverse by the largest norm of all.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from nystrom_attention import NystromAttention

BATCH, LENGTH, WIDTH, LANDMARKS = 1, 20, 6, 5

torch.manual_seed(0)
layer = NystromAttention(
    WIDTH, dim_head=WIDTH, heads=1, num_landmarks=LANDMARKS, residual=False
).double()
torch.nn.init.zeros_(layer.to_out[0].bias)
x_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
torch.set_default_dtype(torch.float64)  # of the identity matrix inside
y_BLD = layer(x_BLD)
(y_BLD * weight_BLD).sum().backward()

arrays = {"x": x_BLD, "weight": weight_BLD, "y": y_BLD, "dx": x_BLD.grad}
for name, parameter in layer.named_parameters():
    arrays |= {name: parameter, f"d{name}": parameter.grad}
np.savez_compressed(
    Path(__file__).with_name("nystrom.npz"),
    versions=f"torch {torch.__version__}, nystrom-attention {version('nystrom-attention')}",
    **{name: array.detach().numpy() for name, array in arrays.items()},
)
