"""The measures of the leak board find what they are for: the published forms leak."""

import pytest

from hybrid_lm.leaks.measures import LENGTH, Probe
from hybrid_lm.leaks.published import FORMS
from hybrid_lm.mixers import Linear


@pytest.mark.parametrize("key", FORMS)
def test_a_published_form_fails_the_suffix_test(key: str):
    probe = Probe(FORMS[key](length=LENGTH))
    assert probe.suffix() > 1e-3
    # What is chosen by a sort leaks without a derivative.
    assert (probe.jacobian() > 1e-3) == (key != "reformer")
    assert probe.packing() > 1e-3


def test_a_causal_mixer_passes():
    probe = Probe(Linear(heads=2, chunk_size=8))
    assert probe.suffix() == 0
    assert probe.jacobian() == 0
    assert 0 < probe.packing() < 1e-6
    assert 0 < probe.hand_off() < 1e-6
