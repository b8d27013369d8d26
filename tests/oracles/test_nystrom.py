"""`nystrom` with causal=False against the `nystrom-attention` package, values and gradients."""

import numpy as np
import pytest

from hybrid_lm.mixers import Nystrom
from tests.oracles.compare import load, mixer_matches

FIXTURE = load("nystrom")


def ours(theirs):
    qkv = np.split(theirs["to_qkv.weight"], 3)
    by_name = {name: weight.T[:, None] for name, weight in zip("qkv", qkv, strict=True)}
    return by_name | {"out": theirs["to_out.0.weight"].T[None]}


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_the_package():
    config = Nystrom(heads=1, landmarks=5, causal=False)
    # Both compute in float64; what is left is rounding that the inverse magnifies.
    mixer_matches(config, FIXTURE, FIXTURE, ours, tolerance=1e-10)
