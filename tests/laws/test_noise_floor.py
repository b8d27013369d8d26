"""Noise floor: trained on i.i.d. uniform symbols, the loss never goes below ln V - 3 standard
errors, for nothing seen so far tells anything about the next symbol.
"""

import math

import numpy as np
import pytest

from hybrid_lm.leaks.noise import SYMBOLS, trained_losses
from hybrid_lm.leaks.published import Linformer
from tests.laws.cases import TINY, Case, defaults

SIZES = TINY | {"chunk_size": 8}
LENGTH = 23


def goes_below_the_floor(losses: np.ndarray) -> bool:
    standard_error = losses.std(ddof=1) / math.sqrt(losses.size)
    return bool(losses.mean() < math.log(SYMBOLS) - 3 * standard_error)


@pytest.mark.slow
@pytest.mark.parametrize("case", defaults(**SIZES), ids=str)
def test_noise_is_not_predicted(case: Case):
    losses = trained_losses(case.config, length=LENGTH)
    assert losses.mean() < 1.1 * math.log(SYMBOLS), "training diverged and shows nothing"
    assert not goes_below_the_floor(losses)


@pytest.mark.slow
def test_a_mixer_that_leaks_is_found_out():
    assert goes_below_the_floor(trained_losses(Linformer(length=LENGTH), length=LENGTH))
