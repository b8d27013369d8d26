"""What the kernelized mixers do without causality: every token sees its whole document."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.errors import UserError
from hybrid_lm.mixers import RFA, Cosine, Linear, MixerConfig, Performer
from tests.laws.cases import (
    TINY,
    WIDTH,
    documents,
    module,
    packed_context,
    packed_rows,
    parameters,
    random_x,
    run,
    single_context,
)
from tests.numerics import assert_close, jit

pytestmark = pytest.mark.thorough

HEADS, CHUNK = TINY["heads"], TINY["chunk_size"]
BOTH_WAYS: list[MixerConfig] = [
    Cosine(heads=HEADS, chunk_size=CHUNK, reweight=True, causal=False),
    Linear(heads=HEADS, chunk_size=CHUNK, causal=False),
    Performer(heads=HEADS, chunk_size=CHUNK, features=8, causal=False),
]


def key(config: MixerConfig) -> str:
    return config.key


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("config", BOTH_WAYS, ids=key)
def test_a_token_sees_its_document_as_the_causal_mixer_does_from_its_end(config: MixerConfig):
    """Weights that depend on two tokens alone: after the last token both mixers see the same, and
    turning a document around turns its outputs around.
    """
    rng = np.random.default_rng(0)
    segment_ids_BL = packed_rows(rng, 3, 30)
    ctx, params = packed_context(segment_ids_BL), parameters(config)
    x_BLD = np.asarray(random_x(rng, 3, 30))
    turned_BLD = x_BLD.copy()
    for row, start, stop in documents(segment_ids_BL):
        turned_BLD[row, start:stop] = x_BLD[row, start:stop][::-1]
    causal = dataclasses.replace(config, causal=True)

    @jit
    def outputs(x_BLD, turned_BLD):
        both_ways, state = run(config, params, x_BLD, ctx)
        assert state == ()
        turned, _ = run(config, params, turned_BLD, ctx)
        return both_ways, turned, run(causal, params, x_BLD, ctx)[0]

    both_ways, turned, from_the_left = map(np.asarray, outputs(x_BLD, turned_BLD))
    for row, start, stop in documents(segment_ids_BL):
        assert_close(both_ways[row, start:stop], turned[row, start:stop][::-1], 1e-9)
        assert_close(both_ways[row, stop - 1], from_the_left[row, stop - 1], 1e-9)


@pytest.mark.parametrize("config", BOTH_WAYS, ids=key)
def test_jacobian_reaches_the_whole_document_and_no_other(config: MixerConfig):
    rng = np.random.default_rng(0)
    segment_ids_BL = np.asarray([[3, 3, 3, 3, 5, 5, 5, 3, 3, 0]])
    ctx, params = packed_context(segment_ids_BL), parameters(config)

    @jit
    def influence(x_BLD):
        jacobian = jax.jacrev(lambda x_BLD: run(config, params, x_BLD, ctx)[0][0])(x_BLD)
        return jnp.abs(jacobian).max(axis=(1, 2, 4))

    depends = np.asarray(influence(random_x(rng, 1, 10))) > 0
    document_L = np.asarray([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(depends, document_L[:, None] == document_L)


@pytest.mark.parametrize("config", BOTH_WAYS, ids=key)
def test_it_takes_no_state_and_costs_twice_the_sums(config: MixerConfig):
    assert not config.is_causal()
    params = parameters(config)
    assert module(config, params).initial_state(1, jnp.float32) == ()
    causal = dataclasses.replace(config, causal=True)
    state = module(causal, params).initial_state(1, jnp.float32)
    with pytest.raises(UserError, match="takes no state"):
        run(config, params, jnp.zeros((1, 2, WIDTH)), single_context(1, 2), state)
    assert config.cost(WIDTH, 8).state_bytes == 0
    assert config.flops_per_token(WIDTH, 8) > causal.flops_per_token(WIDTH, 8)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (partial(Linear, heads=3), "heads 3 does not divide width 16"),
        (partial(Linear, feature_map="taylor2", feature_dim=0), "feature_dim 0"),
        (partial(Linear, decay="head", causal=False), "needs causal=True"),
        (partial(Cosine, heads=3), "heads 3 does not divide width 16"),
        (partial(Cosine, reweight=True, max_length=0), "max_length 0"),
        (partial(RFA, heads=3), "heads 3 does not divide width 16"),
        (partial(RFA, features=0), "features 0"),
        (partial(Performer, heads=3), "heads 3 does not divide width 16"),
        (partial(Performer, features=0), "features 0"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_bad_settings_are_one_clear_line(config: Callable[[], MixerConfig], complaint: str):
    with pytest.raises(UserError, match=complaint) as raised:
        parameters(config())
    assert "\n" not in str(raised.value)
