"""`linear` against `flash-linear-attention`'s feature maps and naive forms."""

from pathlib import Path

import pytest

from hybrid_lm.mixers import Linear
from tests.oracles.kernelized import assert_matches, fixture

SIZES = {"heads": 2, "feature_dim": 3, "chunk_size": 4}
FORMS = {
    "elu1": Linear(**SIZES),
    "exp": Linear(feature_map="exp", decay="head", **SIZES),
    "taylor2": Linear(feature_map="taylor2", **SIZES),
    "taylor2_gated": Linear(feature_map="taylor2", decay="token", **SIZES),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_flash_linear_attention(form: str):
    # The oracle computes in float32, and adds up to 1e-6 to the normaliser.
    oracle = fixture(Path(__file__).with_name("linear.npz"), form)
    assert_matches(FORMS[form], oracle, 1e-5)
