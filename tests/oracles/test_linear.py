"""`linear` against `flash-linear-attention`'s feature maps and naive forms."""

import pytest

from hybrid_lm.mixers import Linear
from tests.oracles.compare import load, mixer_matches

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
    names = ["q", "k", "v", "out"]
    if FORMS[form].decay == "token":
        names += ["gate", "gate_bias"]
    fixture = load("linear", form)
    # The oracle adds up to 1e-6 to the normaliser.
    mixer_matches(FORMS[form], fixture, fixture, lambda theirs: {n: theirs[n] for n in names})
