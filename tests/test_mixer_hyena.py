"""Hyena: filters of limited length and accuracy, and a state of limited room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid_lm.errors import UserError
from hybrid_lm.mixers import Context, Hyena
from tests.laws.cases import WIDTH, module, parameters, random_x, run, single_context
from tests.numerics import jit, relative_rmse

pytestmark = pytest.mark.thorough


def test_a_token_sees_the_latest_max_length_tokens():
    taps, length = 12, 40
    config = Hyena(filter_width=8, max_length=taps, conv_width=1)
    params, x_BLD = parameters(config), random_x(np.random.default_rng(0), 1, length)

    @jit
    def influence(x_BLD):
        def outputs(x_BLD):
            return run(config, params, x_BLD, single_context(1, length))[0][0]

        return jnp.abs(jax.jacrev(outputs)(x_BLD)).max(axis=(1, 2, 4))  # [output, input token]

    depends_LL = np.asarray(influence(x_BLD))
    distance_LL = np.subtract.outer(np.arange(length), np.arange(length))
    seen_LL = (distance_LL >= 0) & (distance_LL < taps)
    assert depends_LL[seen_LL].min() > 1e4 * depends_LL[~seen_LL].max()
    state_bytes = [config.cost(WIDTH, tokens).state_bytes for tokens in (taps - 2, taps - 1, 1000)]
    assert state_bytes[0] < state_bytes[1] == state_bytes[2]


def test_only_tokens_that_would_see_what_a_full_state_lost_are_nan():
    config, capacity, length = Hyena(filter_width=8, max_length=8), 4, 3
    params, rng = parameters(config), np.random.default_rng(0)
    state = module(config, params).initial_state(1, jnp.float32, capacity)
    step = jit(lambda *operands: run(config, params, *operands))
    lost = []
    for start, ids in enumerate([(7, 7, 7), (7, 7, 7), (7, 7, 7), (7, 8, 8), (8, 8, 8)]):
        positions_BL = jnp.arange(length * start, length * (start + 1), dtype=jnp.int32)[None]
        ctx = Context(positions_BL, jnp.asarray([ids]), capacity=capacity)
        y_BLD, state = step(random_x(rng, 1, length), ctx, state)
        lost.append(np.isnan(np.asarray(y_BLD[0])).any(axis=-1).tolist())
    ok, all_lost = [False] * 3, [True] * 3
    # Of 7 earlier tokens that a token sees, 4 are held, and those of the row before it.
    assert lost == [ok, ok, all_lost, [True, False, False], ok]


def test_filters_are_as_exact_as_float32_parameters_allow():
    """Sines of ten times their input amplify every rounding, that of the parameters first."""
    config = Hyena()
    filters = jit(lambda params: module(config, params).filters(1000))
    with jax.enable_x64(True):
        exact = parameters(config)
        rounded = jax.tree.map(lambda p: p.astype(jnp.float32), exact)
        truth, allowed = filters(exact), filters(jax.tree.map(jnp.float64, rounded))
    found = filters(rounded)
    assert found.dtype == jnp.float32
    error, error_of_rounding = relative_rmse(found, truth), relative_rmse(allowed, truth)
    assert error <= 3 * error_of_rounding
    assert error <= 1e-4


def test_one_gate_is_no_hyena():
    with pytest.raises(UserError, match="hyena: order 1 must be at least 2"):
        Hyena(order=1).build(WIDTH, nnx.Rngs(0))
