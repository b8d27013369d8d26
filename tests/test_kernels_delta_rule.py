"""What the delta rule is for: a key that comes again replaces its value."""

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.delta_rule import delta_rule
from tests.numerics import assert_close

pytestmark = pytest.mark.thorough


def test_a_repeated_key_has_its_last_value():
    """One key 200 times at full strength: in powers of the chunk's matrix, terms of 1e17 cancel."""
    rng = np.random.default_rng(0)
    length, dim = 200, 8
    k_K = rng.normal(size=dim)
    k_BLHK = jnp.broadcast_to(jnp.asarray(k_K / np.linalg.norm(k_K)), (1, length, 1, dim))
    v_BLHP = jnp.asarray(rng.normal(size=(1, length, 1, dim)))
    y_BLHP, _ = delta_rule(k_BLHK, k_BLHK, v_BLHP, jnp.ones((1, length, 1)))
    assert_close(y_BLHP, v_BLHP, 1e-5)
