"""Decays of gated linear attention that differ by more than the range of float32."""

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.gla import gla
from tests.numerics import assert_close

pytestmark = pytest.mark.thorough


def test_channels_that_forget_at_once_leave_the_others_exact():
    """Over a chunk, exp of the summed logs spans e^-5000 to 1, and its inverse is not finite."""
    rng = np.random.default_rng(0)
    q_BLHK, k_BLHK, v_BLHP = (jnp.asarray(rng.normal(size=(1, 130, 2, 8))) for _ in range(3))
    log_decay_BLHK = -jnp.asarray(rng.choice([0.0, 1e-3, 1.0, 80.0], size=k_BLHK.shape))
    operands = (q_BLHK, k_BLHK, v_BLHP, log_decay_BLHK)
    assert_close(gla(*operands), gla(*operands, implementation="reference"), 1e-5)
