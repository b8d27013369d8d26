"""`performer` against `performer-pytorch`'s FAVOR+ with the same random projection."""

from pathlib import Path

import pytest

from hybrid_lm.mixers import Performer, performer
from tests.oracles.kernelized import assert_matches, fixture


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["causal", "both ways"])
def test_values_and_gradients_are_those_of_performer_pytorch(form: str, monkeypatch):
    oracle = fixture(Path(__file__).with_name("performer.npz"), form)
    projection_NK = oracle["projection"]
    monkeypatch.setattr(performer, "directions", lambda *_: projection_NK)
    config = Performer(
        heads=2,
        features=len(projection_NK),
        qk_norm=False,
        chunk_size=4,
        causal=form == "causal",
    )
    # Both compute in float64; what is left is rounding.
    assert_matches(config, oracle, 1e-12)
