"""The bench of the mixers: programs compiled in other processes run in this one."""

import math

import pytest

from hybrid_lm.bench.mixers import Mixers
from hybrid_lm.errors import UserError


@pytest.mark.thorough
def test_every_case_is_timed():
    rows = Mixers(width=16, lengths=(8, 16), dtype="float32", only=("conv",)).rows()
    assert [(row["mixer"], row["length"]) for row in rows] == [("conv", 8), ("conv", 16)]
    for row in rows:
        assert 0 < row["forward ms"] < math.inf
        assert 0 < row["forward + backward ms"] < math.inf


@pytest.mark.thorough
def test_what_a_process_refuses_is_said_here():
    with pytest.raises(UserError, match="divide the width 24"):
        Mixers(width=24, lengths=(8,), only=("gla",)).rows()


def test_an_unknown_mixer_is_named():
    with pytest.raises(UserError, match="no mixer 'glu'"):
        Mixers(only=("glu",)).rows()
