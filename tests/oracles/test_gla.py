"""Gated linear attention against flash-linear-attention's naive reference, values and gradients."""

import pytest

from hybrid_lm.kernels.gla import gla
from tests.oracles.compare import load, operation_matches


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_flash_linear_attention():
    def operation(q, k, v, gk, initial_state):
        q = q * q.shape[-1] ** -0.5  # there, the operation scales it
        return gla(q, k, v, gk, initial_state_BHKP=initial_state, chunk_size=8)

    operation_matches(operation, load("gla"), ["q", "k", "v", "gk", "initial_state"])
