"""Linformer and Nyströmformer: what they are beside causal mixers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.errors import UserError
from hybrid_lm.mixers import Attention, Linformer, Nystrom
from tests.laws.cases import (
    WIDTH,
    documents,
    module,
    packed_context,
    parameters,
    run,
    single_context,
)
from tests.numerics import assert_close, jit

WHOLE = [
    Linformer(heads=2, block_size=4, slots=3, causal=False),
    Nystrom(heads=2, landmarks=3, causal=False),
]
IDS = np.array([[3] * 7 + [5] + [3] * 4 + [0] * 2, [2] * 14], np.int32)
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("float64")]


FULL = Attention(heads=2, rope_theta=None, qk_norm=False)


def with_projections_of(params):
    """Parameters of full softmax attention."""
    own = parameters(FULL)
    for name in own:
        own[name].set_value(params[name][...])
    return own


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        (Linformer(heads=2, block_size=11), 1e-12),
        # A landmark for every token, and steps enough for this A.
        (Nystrom(heads=2, block_size=1, landmarks=11, pinv_iterations=30), 1e-6),
    ],
    ids=["linformer", "nystrom"],
)
def test_softmax_attention_is_a_limit(config, tolerance):
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11, WIDTH)))
    params = parameters(config)
    y_BLD = jit(lambda: run(config, params, x_BLD, single_context(2, 11))[0])()
    own = with_projections_of(params)
    full_BLD = jit(lambda: run(FULL, own, x_BLD, single_context(2, 11))[0])()
    assert_close(y_BLD, full_BLD, tolerance)


@pytest.mark.parametrize("config", WHOLE, ids=lambda config: config.key)
def test_without_causality_documents_are_seen_whole_and_apart(config):
    assert not config.is_causal()
    ctx = dataclasses.replace(packed_context(IDS), max_segments=4)
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(*IDS.shape, WIDTH)))
    params = parameters(config)

    @jit
    def influence(x_BLD):
        jacobian = jax.jacrev(lambda x: run(config, params, x, ctx)[0].sum(0))(x_BLD)
        return jnp.abs(jacobian).max(axis=(1, 4))  # [output token, row, input token]

    depends_BLL = np.moveaxis(np.asarray(influence(x_BLD)), 1, 0) > 0
    run_BL = np.cumsum(np.diff(IDS, axis=1, prepend=-1) != 0, axis=1)
    np.testing.assert_array_equal(depends_BLL, run_BL[:, :, None] == run_BL[:, None, :])

    y_BLD, state = jit(lambda: run(config, params, x_BLD, ctx))()
    assert state == () == module(config, params).initial_state(1, jnp.float32)
    for row, start, stop in documents(IDS):
        document_BLD = x_BLD[row : row + 1, start:stop]
        alone_BLD, _ = run(config, params, document_BLD, single_context(1, stop - start))
        assert_close(y_BLD[row, start:stop], alone_BLD[0], 1e-9)


@pytest.mark.parametrize("config", WHOLE, ids=lambda config: config.key)
def test_without_causality_there_is_no_state_and_packing_needs_a_bound(config):
    params, x_BLD = parameters(config), jnp.zeros((*IDS.shape, WIDTH))
    with pytest.raises(UserError, match="no state"):
        run(config, params, x_BLD, single_context(*IDS.shape), {})
    with pytest.raises(UserError, match="max_segments"):
        run(config, params, x_BLD, packed_context(IDS))
    y_BLD, _ = run(config, params, x_BLD, dataclasses.replace(packed_context(IDS), max_segments=1))
    assert np.isnan(y_BLD[0, 7:]).all() and np.isfinite(y_BLD[1]).all()
