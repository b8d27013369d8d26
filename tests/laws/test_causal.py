"""Causal: no output depends, not in one bit, on a later token or on another document."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import Case, cases, parameters, random_x, rows_context, run
from tests.numerics import jit

BATCH, LENGTH = 2, 21


@pytest.mark.parametrize("case", cases(arithmetic=True), ids=str)
def test_later_tokens_change_no_bit_of_earlier_outputs(case: Case):
    rng = np.random.default_rng(0)
    params = parameters(case.config)
    ctx = rows_context(case.config, rng, BATCH, LENGTH)
    x_BLD = np.asarray(random_x(rng, BATCH, LENGTH))

    @jax.jit
    def outputs(x_BLD):
        return run(case.config, params, x_BLD, ctx)[0]

    y_BLD = np.asarray(outputs(x_BLD))
    assert np.isfinite(y_BLD).all()
    for start in range(1, LENGTH + 1):
        other_BLD = np.asarray(random_x(rng, BATCH, LENGTH - start))
        other_BLD = other_BLD * np.float32(10) ** rng.integers(-3, 4)
        changed_BLD = np.concatenate([x_BLD[:, :start], other_BLD], axis=1)
        changed_y_BLD = np.asarray(outputs(changed_BLD))
        np.testing.assert_array_equal(changed_y_BLD[:, :start], y_BLD[:, :start])
        assert start == LENGTH or not np.array_equal(changed_y_BLD[:, start:], y_BLD[:, start:])


@pytest.mark.parametrize("case", cases(), ids=str)
def test_jacobian_is_zero_outside_the_past_of_the_document(case: Case):
    rng = np.random.default_rng(0)
    params = parameters(case.config)
    ctx = rows_context(case.config, rng, BATCH, LENGTH)

    @jit
    def influence(x_BLD):
        jacobian = jax.jacrev(lambda x: run(case.config, params, x, ctx)[0].sum(0))(x_BLD)
        return jnp.abs(jacobian).max(axis=(1, 4))  # [output token, row, input token]

    by_row = np.moveaxis(np.asarray(influence(random_x(rng, BATCH, LENGTH))), 1, 0)
    for row, depends in enumerate(by_row):
        place_L = np.asarray(ctx.positions_BL[row])
        own_L = np.arange(LENGTH) - place_L  # start of each token's document
        token = np.arange(LENGTH)
        past = (token[:, None] >= token) & (token >= own_L[:, None])
        assert not depends[~past].any()
        # Not all: a gate or a feature map may give a token no weight now and then.
        assert np.mean(depends[token, token] > 0) > 0.9
        later = token[place_L > 0]
        assert np.mean(depends[later, later - 1] > 0) > 0.9
