"""Writes delta.npz: the delta rule as flash-linear-attention's naive reference computes it.

Run ``python -m tests.oracles.make_delta`` with the extra `oracles`.
"""

import torch

from tests.oracles.freeze import fla_naive, of_operation, save

BATCH, HEADS, LENGTH, KEY, VALUE = 2, 2, 21, 5, 7

torch.manual_seed(0)
save(
    "delta",
    ["flash-linear-attention"],
    of_operation(
        fla_naive("delta_rule")["delta_rule_recurrence"],
        {
            "q": torch.randn(BATCH, HEADS, LENGTH, KEY),
            "k": torch.nn.functional.normalize(torch.randn(BATCH, HEADS, LENGTH, KEY), dim=-1),
            "v": torch.randn(BATCH, HEADS, LENGTH, VALUE),
            "beta": torch.rand(BATCH, HEADS, LENGTH),
            "initial_state": torch.randn(BATCH, HEADS, KEY, VALUE),
        },
    ),
)
