"""Truth: values and all gradients match the mixer's definition, run step by step in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.dispatch import Implementation
from tests.laws.cases import (
    Case,
    cases,
    module,
    parameters,
    random_x,
    rows_context,
    run,
)
from tests.numerics import assert_close, errors, inexact_leaves, jit, random_weights, weighted_sum

DRAWS, BATCH, PAST, LENGTH = 8, 2, 6, 30
FASTEST = Implementation()
REFERENCE = Implementation(**{f.name: "reference" for f in dataclasses.fields(Implementation)})


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(arithmetic=True), ids=str)
def test_values_and_gradients_match_the_definition_in_float64(case: Case):
    rng = np.random.default_rng(0)
    config, params = case.config, parameters(case.config)
    before = rows_context(config, rng, BATCH, PAST)
    ctx = rows_context(config, rng, BATCH, LENGTH)
    _, state = jit(lambda x_BLD: run(config, params, x_BLD, before))(random_x(rng, BATCH, PAST))
    # Several draws, so that the error of a parameter of few numbers is no accident. They are
    # rounded, so that all forms get the same.
    draws = [random_x(rng, BATCH, LENGTH) for _ in range(DRAWS)]
    x_nBLD = np.asarray(jnp.asarray(draws, jnp.bfloat16), np.float32)
    shapes = jax.eval_shape(lambda: run(config, params, draws[0], ctx, state))
    weights = [np.stack(n) for n in zip(*(random_weights(rng, shapes) for _ in draws), strict=True)]

    def form(implementation, dtype):
        """Outputs, next state and the gradients for parameters, inputs and state."""
        here = dataclasses.replace(ctx, implementation=implementation, dtype=dtype)
        held = jax.eval_shape(lambda: module(config, params).initial_state(BATCH, dtype))
        given = jax.tree.map(lambda a, like: jnp.asarray(a, like.dtype), state, held)
        start = jax.tree.map(lambda p: jnp.asarray(p, jnp.promote_types(dtype, p.dtype)), params)

        def loss(params, x_BLD, state, weights):
            y_BLD, state = run(config, params, x_BLD, here, state)
            values = y_BLD, inexact_leaves(state)
            return weighted_sum(values, weights), values

        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
        of_draws = jit(jax.vmap(gradient, in_axes=(None, 0, None, 0)))
        (dparams, dx, dstate), values = of_draws(start, jnp.asarray(x_nBLD, dtype), given, weights)
        return jax.device_get((values, dparams, dx, inexact_leaves(dstate)))

    with jax.enable_x64(True):
        truth = form(REFERENCE, jnp.float64)
    assert_close(form(FASTEST, jnp.float32), truth, 1e-5)
    half = errors(form(FASTEST, jnp.bfloat16), truth)
    step_by_step = errors(form(REFERENCE, jnp.bfloat16), truth)
    too_far = {
        path: (error, step_by_step[path])
        for path, error in half.items()
        if not error <= max(2 * step_by_step[path], 0.005)
    }
    assert not too_far, f"bfloat16: (relative RMSE, that of the reference form): {too_far}"
