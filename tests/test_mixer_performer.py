"""Performer's random features: they estimate softmax attention without bias, at the Monte-Carlo
rate, and stay of use for keys of any length.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import Attention, Performer
from hybrid_lm.mixers.performer import directions
from tests.laws.cases import parameters, run, single_context
from tests.numerics import jit, relative_rmse

pytestmark = pytest.mark.thorough

WIDTH, HEADS = 16, 2


def test_directions_are_orthogonal_in_blocks_and_estimate_exp_without_bias():
    dim, features, draws = 6, 15, 2000
    rng = np.random.default_rng(0)
    q_K, k_K = rng.normal(size=(2, dim)) * 0.7
    estimates = np.empty(draws)
    for seed in range(draws):
        w_NK = np.float64(directions(features, dim, seed))
        f_q = np.exp(w_NK @ q_K - q_K @ q_K / 2)
        f_k = np.exp(w_NK @ k_K - k_K @ k_K / 2)
        estimates[seed] = f_q @ f_k / features
    block = w_NK[:dim] / np.linalg.norm(w_NK[:dim], axis=1, keepdims=True)
    np.testing.assert_allclose(block @ block.T, np.eye(dim), atol=1e-6)
    standard_error = estimates.std(ddof=1) / np.sqrt(draws)
    assert abs(estimates.mean() - np.exp(q_K @ k_K)) < 4 * standard_error
    assert standard_error < 0.05 * np.exp(q_K @ k_K)


@pytest.mark.usefixtures("float64")
def test_the_error_falls_as_one_over_the_root_of_the_features():
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(8, 48, WIDTH)))
    ctx = single_context(8, 48)
    softmax = Attention(heads=HEADS, rope_theta=None)
    params = parameters(softmax, WIDTH)
    for norm in ("q_norm", "k_norm"):  # short enough that 64 features already show the rate
        params[norm]["scale"].set_value(params[norm]["scale"][...] / 2)
    truth = jit(lambda x_BLD: run(softmax, params, x_BLD, ctx)[0])(x_BLD)
    sizes = [64, 256, 1024, 4096]

    def error(features):
        config = Performer(heads=HEADS, features=features, chunk_size=16)
        y_BLD = jit(lambda x_BLD: run(config, params, x_BLD, ctx)[0])(x_BLD)
        return relative_rmse(y_BLD, truth)

    errors = [error(features) for features in sizes]
    slope, _ = np.polyfit(np.log(sizes), np.log(errors), 1)
    assert -0.6 < slope < -0.4
    assert errors[-1] < 0.05


def test_keys_too_long_for_exp_still_get_their_share():
    """Exponents near -200 underflow unless they are kept relative to the largest so far."""
    config = Performer(heads=HEADS, features=32, qk_norm=False, chunk_size=4)
    params = parameters(config, WIDTH)
    x_BLD = 12 * jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, WIDTH)), jnp.float32)
    x_BLD = jnp.broadcast_to(x_BLD, (1, 9, WIDTH))
    y_BLD, _ = jit(lambda x_BLD: run(config, params, x_BLD, single_context(1, 9)))(x_BLD)
    # All tokens are the same, so that every mean of their values is the first of them.
    assert relative_rmse(y_BLD, jnp.broadcast_to(y_BLD[:, :1], y_BLD.shape)) < 1e-5
    v_HP = jnp.einsum("d,dhp->hp", x_BLD[0, 0], params["v"][...])
    assert relative_rmse(y_BLD[0, 0], jnp.einsum("hp,hpd->d", v_HP, params["out"][...])) < 1e-5
