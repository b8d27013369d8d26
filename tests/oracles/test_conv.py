"""`conv` against `transformers`' LFM2 short convolution, values and gradients."""

import pytest

from hybrid_lm.mixers import Conv
from tests.oracles.compare import load, mixer_matches

FIXTURE = load("conv")
WIDTH = FIXTURE["x"].shape[-1]


def ours(theirs):
    return {
        "inputs": theirs["in_proj.weight"].reshape(3, WIDTH, WIDTH).transpose(2, 0, 1),
        "conv": theirs["conv.weight"][:, 0].T,
        "out": theirs["out_proj.weight"].T,
    }


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_lfm2():
    # Both compute in float64; what is left is rounding.
    mixer_matches(Conv(), FIXTURE, FIXTURE, ours, tolerance=1e-12)
