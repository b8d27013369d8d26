"""`mamba` against `transformers` and mamba.py, values and gradients."""

import numpy as np
import pytest

from hybrid_lm.mixers import Mamba
from tests.oracles.compare import load, mixer_matches


def ours(theirs):
    x, z = np.split(theirs["in_proj.weight"].T, 2, axis=1)
    return {
        "x": x,
        "z": z,
        "conv": theirs["conv1d.weight"][:, 0].T,
        "conv_bias": theirs["conv1d.bias"],
        "select": theirs["x_proj.weight"].T,
        "step": theirs["dt_proj.weight"].T,
        "step_bias": theirs["dt_proj.bias"],
        "log_a": theirs["A_log"],
        "skip": theirs["D"],
        "out": theirs["out_proj.weight"].T,
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "oracle", ["transformers", pytest.param("mambapy", marks=pytest.mark.thorough)]
)
def test_values_and_gradients_are_those_of(oracle: str):
    fixture = load("mamba")
    found = {k.partition("/")[2]: v for k, v in fixture.items() if k.startswith(oracle)}
    _, states = fixture["A_log"].shape
    _, rank = fixture["dt_proj.weight"].shape
    config = Mamba(state_size=states, step_rank=rank, chunk_size=8)
    mixer_matches(config, fixture, found, ours)
