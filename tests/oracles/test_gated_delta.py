"""`gated_delta` against `transformers`' Qwen3-Next, values and gradients."""

import numpy as np
import pytest

from hybrid_lm.mixers import GatedDelta
from tests.oracles.compare import load, mixer_matches

FIXTURE = load("gated_delta")
WIDTH, HEADS, VALUE = FIXTURE["x"].shape[-1], len(FIXTURE["A_log"]), len(FIXTURE["norm.weight"])
KEY = WIDTH // HEADS


def ours(theirs):
    def of_head(weight, *sizes):
        """[outputs of head 0, outputs of head 1, ...; D] -> parts [D, H, size]."""
        weight = weight.reshape(HEADS, sum(sizes), -1).transpose(2, 0, 1)
        return np.split(weight, np.cumsum(sizes[:-1]).tolist(), axis=-1)

    q, k, v, z = of_head(theirs["in_proj_qkvz.weight"], KEY, KEY, VALUE, VALUE)
    beta, step = of_head(theirs["in_proj_ba.weight"], 1, 1)
    # The convolution has all heads' q, then all heads' k, then all heads' v.
    taps = np.split(theirs["conv1d.weight"][:, 0].T, [HEADS * KEY, 2 * HEADS * KEY], axis=1)
    heads = [part.reshape(-1, HEADS, part.shape[1] // HEADS) for part in taps]
    return {
        "inputs": {
            "qkv": np.concatenate([q, k, v], axis=-1),
            "conv": np.concatenate(heads, axis=-1),
        },
        "beta": beta[..., 0],
        "step": step[..., 0],
        "step_bias": theirs["dt_bias"],
        "log_a": theirs["A_log"],
        "z": z,
        "norm": {"scale": theirs["norm.weight"]},
        "out": theirs["out_proj.weight"].T.reshape(HEADS, VALUE, WIDTH),
    }


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_qwen3_next():
    mixer_matches(GatedDelta(heads=HEADS), FIXTURE, FIXTURE, ours)
