"""The delta rule against flash-linear-attention's naive reference, values and gradients."""

import jax.numpy as jnp
import pytest

from hybrid_lm.kernels.delta_rule import delta_rule
from tests.oracles.compare import load, operation_matches


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_flash_linear_attention():
    def operation(q, k, v, beta, initial_state):
        q = q * q.shape[-1] ** -0.5  # there, the operation scales it
        tokens = [jnp.moveaxis(x, 1, 2) for x in (q, k, v, beta)]
        y_BLHP, final = delta_rule(*tokens, initial_state_BHKP=initial_state, chunk_size=4)
        return jnp.moveaxis(y_BLHP, 2, 1), final

    operation_matches(operation, load("delta"), ["q", "k", "v", "beta", "initial_state"])
