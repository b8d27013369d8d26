"""Hand-off: splitting rows anywhere and passing the state equals one pass, in values and gradients,
part by part as well as token by token.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import Context
from tests.laws.cases import (
    Case,
    cases,
    defaults,
    module,
    parameters,
    random_x,
    rows_context,
    run,
    single_context,
)
from tests.numerics import assert_close, jit, random_weights, weighted_sum

BATCH, LENGTH = 3, 20
PARTS = (4, 1, 8, 7)


def in_parts(config, params, x_BLD, ctx):
    """Outputs and state of `PARTS` run one after the other; what grows starts from nothing."""
    ys, state, start = [], None, 0
    for size in PARTS:
        x_part, ctx_part = jax.tree.map(lambda a: a[:, start : start + size], (x_BLD, ctx))  # noqa: B023
        y_BLD, state = run(config, params, x_part, ctx_part, state)
        ys.append(y_BLD)
        start += size
    return jnp.concatenate(ys, axis=1), state


def in_pieces_of(size, config, params, x_BLD, ctx):
    """Outputs and state of pieces of ``size`` in a loop, from a state with room for all."""
    batch, length, _ = x_BLD.shape
    state = module(config, params).initial_state(batch, x_BLD.dtype, capacity=length)
    ctx = dataclasses.replace(ctx, capacity=length)

    def piece(state, at):
        y_BLD, state = run(config, params, *at, state)
        return state, y_BLD

    def cut(a):
        return jnp.moveaxis(a.reshape(batch, length // size, size, *a.shape[2:]), 1, 0)

    state, y_nBCD = jax.lax.scan(piece, state, jax.tree.map(cut, (x_BLD, ctx)))
    return jnp.moveaxis(y_nBCD, 0, 1).reshape(x_BLD.shape), state


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", cases(), ids=str)
def test_pieces_equal_one_pass_in_values_and_gradients(case: Case):
    rng = np.random.default_rng(0)
    config, params = case.config, parameters(case.config)
    ctx = rows_context(config, rng, BATCH, LENGTH)
    x_BLD = random_x(rng, BATCH, LENGTH)
    shapes = jax.eval_shape(lambda: run(config, params, x_BLD, ctx))
    weights = random_weights(rng, shapes)

    def values_and_gradients(form):
        def loss(params, x_BLD):
            y_BLD, state = form(config, params, x_BLD, ctx)
            return weighted_sum((y_BLD, state), weights), (y_BLD, state)

        return jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x_BLD)

    truth = values_and_gradients(run)
    assert_close(values_and_gradients(partial(in_pieces_of, 1)), truth, 1e-9)
    assert_close(values_and_gradients(partial(in_pieces_of, 5)), truth, 1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one document"])
def test_uneven_parts_equal_one_pass(case: Case, packed: bool):
    rng = np.random.default_rng(3)
    config, params = case.config, parameters(case.config)
    if packed and config.packable:
        ctx = rows_context(config, rng, BATCH, LENGTH)
        starts_at_split = ctx.positions_BL[:, np.cumsum(PARTS[:-1])] == 0
        assert starts_at_split.any() and not starts_at_split.all()
    else:
        ctx = single_context(BATCH, LENGTH)
    x_BLD = random_x(rng, BATCH, LENGTH)

    @jit
    def both(x_BLD):
        return run(config, params, x_BLD, ctx), in_parts(config, params, x_BLD, ctx)

    one_pass, parts = both(x_BLD)
    assert_close(parts, one_pass, 1e-9)


@pytest.mark.parametrize(
    "case", [case for case in defaults() if not case.config.is_subquadratic()], ids=str
)
def test_a_document_that_outgrows_a_fixed_cache_is_nan_and_the_next_one_is_not(case: Case):
    rng = np.random.default_rng(0)
    config, params = case.config, parameters(case.config)
    capacity, length = 4, 3
    state = module(config, params).initial_state(1, jnp.float32, capacity)

    def context(start, ids):
        return Context(
            start + jnp.arange(length, dtype=jnp.int32)[None], jnp.asarray([ids]), capacity=capacity
        )

    step = jit(partial(run, config, params))
    ys = []
    for start, ids in ((0, (7, 7, 7)), (3, (7, 7, 7)), (6, (7, 7, 8))):
        x_BLD = random_x(rng, 1, length)
        y_BLD, state = step(x_BLD, context(start, ids), state)
        ys.append(np.isnan(np.asarray(y_BLD[0])).any(axis=-1).tolist())
    assert ys == [[False] * 3, [False] * 3, [True, True, False]]
    y_BLD, _ = step(random_x(rng, 1, length), context(1, (8, 8, 8)), state)
    assert np.isfinite(y_BLD).all()
