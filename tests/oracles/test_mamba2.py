"""`mamba2` against `transformers`, values and gradients."""

import numpy as np
import pytest

from hybrid_lm.mixers import Mamba2
from tests.oracles.compare import load, mixer_matches

FIXTURE = load("mamba2")
HEADS, INNER = len(FIXTURE["D"]), len(FIXTURE["norm.weight"])
SELECT = len(FIXTURE["conv1d.bias"]) - INNER


def ours(theirs):
    z, x, bc, step = np.split(
        theirs["in_proj.weight"].T, np.cumsum([INNER, INNER, SELECT]).tolist(), axis=1
    )
    conv_x, conv_bc = np.split(theirs["conv1d.weight"][:, 0].T, [INNER], axis=1)
    conv_x_bias, conv_bc_bias = np.split(theirs["conv1d.bias"], [INNER])
    return {
        "x": x,
        "z": z,
        "bc": bc,
        "step": step,
        "step_bias": theirs["dt_bias"],
        "conv_x": conv_x,
        "conv_x_bias": conv_x_bias,
        "conv_bc": conv_bc,
        "conv_bc_bias": conv_bc_bias,
        "log_a": theirs["A_log"],
        "skip": theirs["D"],
        "norm": {"scale": theirs["norm.weight"]},
        "out": theirs["out_proj.weight"].T,
    }


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_transformers():
    config = Mamba2(state_size=SELECT // 2, head_dim=INNER // HEADS, chunk_size=8)
    mixer_matches(config, FIXTURE, FIXTURE, ours)
