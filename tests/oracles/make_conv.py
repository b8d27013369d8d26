"""Writes conv.npz: LFM2's gated short convolution as Hugging Face `transformers` computes it."""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

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
x_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
y_BLD = layer(x_BLD)
(y_BLD * weight_BLD).sum().backward()

arrays = {"x": x_BLD, "weight": weight_BLD, "y": y_BLD, "dx": x_BLD.grad}
for name, parameter in layer.named_parameters():
    arrays |= {name: parameter, f"d{name}": parameter.grad}
np.savez_compressed(
    Path(__file__).with_name("conv.npz"),
    versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
    **{name: array.detach().numpy() for name, array in arrays.items()},
)
