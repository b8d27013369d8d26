"""`linformer` with causal=False against the `linformer` package, values and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import Linformer
from tests.oracles.compare import load, mixer_matches

FIXTURE = load("linformer")
HEADS, WIDTH = 2, FIXTURE["x"].shape[-1]
LONGEST, SLOTS = FIXTURE["proj_k"].shape


def ours(theirs):
    by_head = {name: theirs[f"to_{name}.weight"].T.reshape(WIDTH, HEADS, -1) for name in "qkv"}
    projections = np.stack([theirs["proj_k"], theirs["proj_v"]], axis=1)
    out = theirs["to_out.weight"].T.reshape(HEADS, -1, WIDTH)
    return by_head | {"out": out, "projections": projections}


def unshared(params):
    """The package has one E and one F for all heads."""
    shared = params["projections"]
    return params | {"projections": jnp.repeat(shared[:, :, None], HEADS, axis=2)}


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_the_package():
    config = Linformer(heads=HEADS, block_size=LONGEST, slots=SLOTS, causal=False)
    # Both compute in float64; what is left is rounding.
    mixer_matches(config, FIXTURE, FIXTURE, ours, unshared=unshared, tolerance=1e-12)
