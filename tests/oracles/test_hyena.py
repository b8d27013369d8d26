"""`hyena` against `multimolecule`'s HyenaDNA, values and gradients."""

import numpy as np
import pytest

from hybrid_lm.mixers import Hyena
from tests.oracles.compare import load, mixer_matches

FIXTURE = load("hyena")
WIDTH = FIXTURE["x"].shape[-1]
HIDDEN, FEATURES = FIXTURE["filter_fn.implicit_filter.0.weight"].shape


def ours(theirs):
    def flat(per_channel):
        """[gate after the long convolution, gate before it, v] -> [v, gate before, gate after]."""
        return per_channel.reshape(3, WIDTH, -1)[::-1].transpose(2, 0, 1)

    network = "filter_fn.implicit_filter"
    return {
        "inputs": flat(theirs["in_proj.weight"]),
        "conv": flat(theirs["short_filter.weight"]),
        "conv_bias": flat(theirs["short_filter.bias"])[0],
        "first": theirs[f"{network}.0.weight"].T,
        "first_bias": theirs[f"{network}.0.bias"],
        "hidden": np.stack([theirs[f"{network}.{layer}.weight"].T for layer in (2, 4)]),
        "hidden_bias": np.stack([theirs[f"{network}.{layer}.bias"] for layer in (2, 4)]),
        "frequency": np.concatenate([theirs[f"{network}.{layer}.freq"] for layer in (1, 3, 5)]),
        "last": theirs[f"{network}.6.weight"].T[:, None],
        "skip": theirs["filter_fn.bias"][None],
        "out": theirs["out_proj.weight"].T,
    }


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_hyena_dna():
    config = Hyena(filter_width=HIDDEN, bands=(FEATURES - 1) // 2, max_length=50, chunk_size=16)
    mixer_matches(config, FIXTURE, FIXTURE, ours)
