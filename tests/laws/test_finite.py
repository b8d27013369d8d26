"""Finite: no NaN or inf in values or gradients, in float32 and bfloat16, on rows of 16k tokens of
adversarial scales, with parameters as they start and ten times as large.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import Context
from tests.laws.cases import WIDTH, Case, defaults, parameters, run
from tests.numerics import inexact_leaves

LENGTH = 16_384


def row(large: float) -> np.ndarray:
    """x_BLD: one row of stretches that are hard in different ways."""
    rng = np.random.default_rng(0)
    normal_LD = rng.normal(size=(LENGTH // 7 + 1, WIDTH))
    one_token_LD = np.zeros_like(normal_LD)
    one_token_LD[LENGTH // 20] = large
    stretches = [
        np.zeros_like(normal_LD),
        1e-4 * normal_LD,
        large * normal_LD,
        normal_LD,
        one_token_LD,
        np.geomspace(1e-6, large, len(normal_LD))[:, None] * normal_LD,
        np.broadcast_to(large * normal_LD[0], normal_LD.shape),
    ]
    return np.concatenate(stretches)[None, :LENGTH]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.thorough), "bfloat16"])
@pytest.mark.parametrize("case", defaults(heads=1, state_size=8, head_dim=8), ids=str)
def test_long_rows_of_adversarial_scale_stay_finite(case: Case, dtype: str):
    start = parameters(case.config)
    ctx = Context.of_documents(1, LENGTH, dtype=dtype)

    @jax.jit
    def not_finite(params, x_BLD):
        """Number of values and gradients that are not finite."""

        def loss(params, x_BLD):
            y_BLD, state = run(case.config, params, x_BLD, ctx)
            return y_BLD.astype(jnp.float32).mean(), (y_BLD, state)

        gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_BLD)
        return sum(jnp.sum(~jnp.isfinite(leaf)) for leaf in inexact_leaves((gradients, outputs)))

    assert int(not_finite(start, jnp.asarray(row(3e4), dtype))) == 0
    tenfold = jax.tree.map(lambda p: 10 * p, start)
    assert int(not_finite(tenfold, jnp.asarray(row(1e2), dtype))) == 0
