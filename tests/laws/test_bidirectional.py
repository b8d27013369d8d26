"""Not causal: where a mixer has ``causal=False``, a token sees later tokens of its document and
nothing of another, and the mixer has no state and no place in a language model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid_lm.errors import UserError
from hybrid_lm.model import Model, ModelConfig
from tests.laws.cases import (
    WIDTH,
    Case,
    defaults,
    documents,
    packed_context,
    packed_rows,
    parameters,
    random_x,
    run,
    single_context,
)
from tests.numerics import assert_close, jit

BATCH, LENGTH = 2, 21

BIDIRECTIONAL = [
    Case(case.name, dataclasses.replace(case.config, **{"causal": False}))
    for case in defaults()
    if hasattr(case.config, "causal")
]


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=str)
def test_a_token_sees_later_tokens_of_its_document_and_no_other_document(case: Case):
    rng = np.random.default_rng(0)
    params, x_BLD = parameters(case.config), random_x(rng, BATCH, LENGTH)
    packs = case.config.packable
    ids_BL = packed_rows(rng, BATCH, LENGTH) if packs else np.ones((BATCH, LENGTH), np.int32)
    ctx = packed_context(ids_BL) if packs else single_context(BATCH, LENGTH)
    ctx = dataclasses.replace(ctx, max_segments=LENGTH)

    @jit
    def outputs_and_influence(x_BLD):
        def summed(x_BLD):
            y_BLD, state = run(case.config, params, x_BLD, ctx)
            return y_BLD.sum(0), (y_BLD, state)

        jacobian, (y_BLD, state) = jax.jacrev(summed, has_aux=True)(x_BLD)
        return y_BLD, state, jnp.abs(jacobian).max(axis=(1, 4))  # [output, row, input]

    y_BLD, state, depends = outputs_and_influence(x_BLD)
    assert state == ()
    spans = documents(ids_BL)
    for row, start, stop in spans:
        of_document = np.asarray(depends[start:stop, row])
        assert not of_document[:, :start].any() and not of_document[:, stop:].any()
    row, start, stop = max(spans, key=lambda span: span[2] - span[1])
    assert np.triu(depends[start:stop, row, start:stop], 1).any(), "nothing comes from later tokens"
    alone_BLD, _ = run(
        case.config, params, x_BLD[row : row + 1, start:stop], single_context(1, stop - start)
    )
    assert_close(alone_BLD[0], y_BLD[row, start:stop], 1e-9)


@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=str)
def test_there_is_no_state_and_no_language_model(case: Case):
    params = parameters(case.config)
    module = case.config.build(WIDTH, nnx.Rngs(0))
    assert module.initial_state(1, jnp.float32, capacity=8) == ()
    causal = dataclasses.replace(case.config, **{"causal": True})
    state = causal.build(WIDTH, nnx.Rngs(0)).initial_state(1, jnp.float32, capacity=8)
    with pytest.raises(UserError, match="takes no state"):
        run(case.config, params, jnp.zeros((1, 4, WIDTH)), single_context(1, 4), state)
    with pytest.raises(UserError, match="'m' is not causal"):
        Model(ModelConfig("m", {"m": case.config}, width=WIDTH), vocab_size=8)
