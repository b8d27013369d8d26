"""Limit: at the setting that `limit` names, a mixer equals full softmax attention."""

import jax
import numpy as np
import pytest

from tests.laws.cases import (
    Case,
    cases,
    parameters,
    random_x,
    rows_context,
    run,
)
from tests.numerics import assert_close, jit, random_weights, weighted_sum

BATCH, LENGTH = 2, 21


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "case",
    [case for case in cases(arithmetic=True) if case.config.limit(LENGTH)],
    ids=str,
)
def test_the_limit_is_full_attention(case: Case):
    limit = case.config.limit(LENGTH)
    assert limit is not None
    at_limit, full = limit
    assert at_limit.key == case.config.key and full.key == "attention" and full != at_limit
    rng = np.random.default_rng(0)
    ctx = rows_context(at_limit, rng, BATCH, LENGTH)
    params, x_BLD = parameters(at_limit), random_x(rng, BATCH, LENGTH)
    weights = random_weights(rng, x_BLD)

    def values_and_gradients(config):
        def loss(params, x_BLD):
            y_BLD, _ = run(config, params, x_BLD, ctx)
            return weighted_sum(y_BLD, weights), y_BLD

        return jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x_BLD)

    assert_close(values_and_gradients(at_limit), values_and_gradients(full), 1e-9)
