"""LSH attention against its formula in plain loops, one side and both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid_lm.errors import UserError
from hybrid_lm.mixers import Reformer
from tests.laws.cases import (
    WIDTH,
    documents,
    packed_context,
    packed_rows,
    parameters,
    random_x,
    run,
    single_context,
)
from tests.numerics import assert_close, jit

pytestmark = pytest.mark.thorough

CONFIG = Reformer(heads=2, buckets=4, bucket_window=4, rope_theta=None, chunk_size=3)
BOTH_SIDES = dataclasses.replace(CONFIG, causal=False)
CONFIGS = {
    "shared": CONFIG,
    "separate": dataclasses.replace(CONFIG, share_qk=False),
    "both sides": BOTH_SIDES,
}


def buckets(config: Reformer, q_LHK: np.ndarray) -> np.ndarray:
    """[L, H, rounds]."""
    shape = (config.heads, config.rounds, q_LHK.shape[-1], config.buckets // 2)
    rotation = np.random.default_rng(config.seed).normal(size=shape)
    turned = np.einsum("lhk,hrkn->lhrn", q_LHK, rotation)
    return np.concatenate([turned, -turned], axis=-1).argmax(-1)


def by_loops(config: Reformer, params, x_LD: np.ndarray) -> np.ndarray:
    """The outputs of one document, token by token and head by head."""
    weights = {name: np.asarray(params[name][...], np.float64) for name in params}
    q, v = (np.einsum("ld,dhk->lhk", x_LD, weights[name]) for name in ("q", "v"))
    bucket = buckets(config, q)
    k = q / np.linalg.norm(q, axis=-1, keepdims=True)
    if not config.share_qk:
        k = np.einsum("ld,dhk->lhk", x_LD, weights["k"])
    y_LD = np.zeros_like(x_LD)
    for i in range(len(x_LD)):
        for head in range(config.heads):
            seen = []
            for own in bucket[:, head].T:
                mates = np.flatnonzero(own == own[i])
                earlier, later = mates[mates < i], mates[mates > i]
                if config.causal:
                    seen += [*earlier[-config.bucket_window :]]
                else:
                    half = config.bucket_window // 2
                    seen += [*earlier[-half:], *later[:half]]
                if not config.share_qk:
                    seen.append(i)
            seen = np.array(seen or [i])
            weight = np.exp(k[seen, head] @ q[i, head] / q.shape[-1] ** 0.5)
            y_LD[i] += weight @ v[seen, head] / weight.sum() @ weights["out"][head]
    return y_LD


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_outputs_follow_the_formula(config: Reformer):
    rng = np.random.default_rng(0)
    segment_ids_BL = packed_rows(rng, 2, 60)
    params, x_BLD = parameters(config), random_x(rng, 2, 60)
    ctx = packed_context(segment_ids_BL)
    y_BLD = np.asarray(jit(lambda x_BLD: run(config, params, x_BLD, ctx)[0])(x_BLD))
    for row, start, stop in documents(segment_ids_BL):
        alone_LD = by_loops(config, params, np.asarray(x_BLD[row, start:stop]))
        assert_close(y_BLD[row, start:stop], alone_LD, 1e-9)


def test_both_sides_reach_the_future_and_have_no_state():
    x_BLD = random_x(np.random.default_rng(0), 1, 30)
    params, ctx = parameters(BOTH_SIDES), single_context(1, 30)
    assert not BOTH_SIDES.is_causal()

    @jit
    def influence(x_BLD):
        return jax.jacrev(lambda x: run(BOTH_SIDES, params, x, ctx)[0][0, 0])(x_BLD)

    assert jnp.abs(influence(x_BLD))[:, 0, 1:].max() > 0
    assert jit(lambda x_BLD: run(BOTH_SIDES, params, x_BLD, ctx)[1])(x_BLD) == ()
    with pytest.raises(UserError, match="no state"):
        run(BOTH_SIDES, params, x_BLD, ctx, ())


def test_more_documents_than_promised_are_nan():
    ids_BL = np.arange(1, 25)[None]
    x_BLD = random_x(np.random.default_rng(0), 1, 24)
    ctx = packed_context(ids_BL)

    def is_nan(promised):
        here = dataclasses.replace(ctx, max_segments=promised)
        y_BLD, _ = jit(lambda x_BLD: run(CONFIG, parameters(CONFIG), x_BLD, here))(x_BLD)
        return bool(np.isnan(y_BLD).any())

    assert is_nan(1) and not is_nan(24)


@pytest.mark.parametrize(
    "fields",
    [{"buckets": 3}, {"heads": 3}, {"rounds": 0}, {"causal": False, "bucket_window": 3}],
    ids=str,
)
def test_settings_that_do_not_fit_are_told(fields):
    with pytest.raises(UserError, match="reformer"):
        Reformer(**fields).build(WIDTH, nnx.Rngs(0))
