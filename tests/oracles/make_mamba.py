"""Writes mamba.npz: Mamba as `transformers` and as mamba.py compute it, with the same weights.

Run ``python -m tests.oracles.make_mamba`` with the extra `oracles`.
"""

import torch
from mambapy.mamba import MambaBlock
from mambapy.mamba import MambaConfig as MambaPyConfig
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from tests.oracles.freeze import save, values_and_gradients

BATCH, LENGTH, WIDTH, STATES, RANK = 2, 21, 6, 4, 3

torch.manual_seed(0)
config = MambaConfig(
    hidden_size=WIDTH, state_size=STATES, time_step_rank=RANK, num_hidden_layers=1, use_cache=False
)
layer = MambaMixer(config, 0)
with torch.no_grad():
    for parameter in layer.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
other = MambaBlock(MambaPyConfig(d_model=WIDTH, n_layers=1, dt_rank=RANK, d_state=STATES))
other.load_state_dict(layer.state_dict())
x_BLD = torch.randn(BATCH, LENGTH, WIDTH)
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH)
arrays = {"x": x_BLD, "weight": weight_BLD, **dict(layer.named_parameters())}
for oracle, of_oracle in (("transformers", layer), ("mambapy", other)):
    found = values_and_gradients(of_oracle, x_BLD, weight_BLD)
    arrays |= {f"{oracle}/{name}": array for name, array in found.items()}
save("mamba", ["transformers", "mambapy"], arrays)
