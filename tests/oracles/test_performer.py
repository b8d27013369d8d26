"""`performer` against `performer-pytorch`'s FAVOR+ with the same random projection."""

import pytest

from hybrid_lm.mixers import Performer, performer
from tests.oracles.compare import load, mixer_matches


def ours(theirs):
    return {name: theirs[name] for name in ("q", "k", "v", "out")}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["causal", "both ways"])
def test_values_and_gradients_are_those_of_performer_pytorch(form: str, monkeypatch):
    fixture = load("performer", form)
    projection_NK = fixture["projection"]
    monkeypatch.setattr(performer, "directions", lambda *_: projection_NK)
    config = Performer(
        heads=2,
        features=len(projection_NK),
        qk_norm=False,
        chunk_size=4,
        causal=form == "causal",
    )
    # Both compute in float64; what is left is rounding.
    mixer_matches(config, fixture, fixture, ours, tolerance=1e-12)
