"""Writes gla.npz: gated linear attention as flash-linear-attention's naive reference computes it.

Run ``python -m tests.oracles.make_gla`` with the extra `oracles`.
"""

from functools import partial

import torch

from tests.oracles.freeze import fla_naive, of_operation, save

BATCH, LENGTH, HEADS, KEY, VALUE = 2, 21, 2, 5, 7

torch.manual_seed(0)
save(
    "gla",
    ["flash-linear-attention"],
    of_operation(
        partial(fla_naive("gla")["naive_recurrent_gla"], output_final_state=True),
        {
            "q": torch.randn(BATCH, LENGTH, HEADS, KEY),
            "k": torch.randn(BATCH, LENGTH, HEADS, KEY),
            "v": torch.randn(BATCH, LENGTH, HEADS, VALUE),
            "gk": torch.nn.functional.logsigmoid(torch.randn(BATCH, LENGTH, HEADS, KEY)),
            "initial_state": torch.randn(BATCH, HEADS, KEY, VALUE),
        },
    ),
)
