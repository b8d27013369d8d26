"""Routed attention against its formula in plain loops, and what trains the choice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid_lm.errors import UserError
from hybrid_lm.mixers import Routed
from tests.laws.cases import WIDTH, parameters, random_x, run, single_context
from tests.numerics import assert_close, jit

pytestmark = pytest.mark.thorough

LENGTH, BLOCK, LOCAL, TOP = 37, 4, 1, 2
CONFIG = Routed(
    heads=4,
    kv_heads=2,
    block_size=BLOCK,
    local_blocks=LOCAL,
    top_k=TOP,
    rope_theta=None,
    qk_norm=False,
)


def by_loops(params, x_LD: np.ndarray, gated: bool) -> np.ndarray:
    """The outputs, token by token and head by head."""
    q, k, v, out = (np.asarray(params[name][...], np.float64) for name in ("q", "k", "v", "out"))
    heads, dim = q.shape[1:]
    share = heads // k.shape[1]
    y_LD = np.zeros_like(x_LD)
    for i in range(len(x_LD)):
        j = i // BLOCK
        for head in range(heads):
            group = head // share
            key, value = x_LD @ k[:, group], x_LD @ v[:, group]
            siblings = q[:, group * share : (group + 1) * share].mean(1)
            first = x_LD[j * BLOCK] @ siblings
            earlier = range(j - LOCAL + 1)
            score = {
                b: first @ key[b * BLOCK : (b + 1) * BLOCK].mean(0) / dim**0.5 for b in earlier
            }
            chosen = sorted(score, key=lambda b: -score[b])[:TOP]
            logits = np.full(i + 1, -np.inf)
            for s in range(i + 1):
                b = s // BLOCK
                if b > j - LOCAL or b in chosen:
                    logits[s] = (x_LD[i] @ q[:, head]) @ key[s] / dim**0.5
                if b in chosen and gated:
                    logits[s] -= np.log1p(np.exp(-score[b]))
            weights = np.exp(logits - logits.max())
            y_LD[i] += (weights / weights.sum()) @ value[: i + 1] @ out[head]
    return y_LD


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "as in MoBA"])
def test_outputs_follow_the_formula(gated: bool):
    config = Routed(**(vars(CONFIG) | {"gated": gated}))
    params = parameters(config)
    x_BLD = random_x(np.random.default_rng(0), 1, LENGTH)
    y_BLD = jit(lambda x_BLD: run(config, params, x_BLD, single_context(1, LENGTH))[0])(x_BLD)
    assert_close(y_BLD[0], by_loops(params, np.asarray(x_BLD[0]), gated), 1e-9)


def test_the_gate_trains_the_query_that_chooses():
    """The first query of the last block changes what its last token reads, only with the gate."""
    x_BLD = random_x(np.random.default_rng(0), 1, 8 * BLOCK)
    ctx = single_context(1, 8 * BLOCK)

    def influence(gated):
        config = Routed(**(vars(CONFIG) | {"gated": gated}))
        params = parameters(config)

        def last(x_BLD):
            state = run(config, params, x_BLD[:, :-1], ctx_of(slice(0, -1)))[1]
            return lambda query: run(
                config, params, x_BLD[:, -1:], ctx_of(slice(-1, None)), state | {"query": query}
            )[0].sum(), state["query"]

        def ctx_of(part):
            return jax.tree.map(lambda a: a[:, part], ctx)

        @jit
        def gradient(x_BLD):
            output, query = last(x_BLD)
            return jax.grad(output)(query)

        return float(jnp.abs(gradient(x_BLD)).max())

    assert influence(gated=True) > 1e-6
    assert influence(gated=False) == 0


def test_settings_that_do_not_fit_are_told():
    with pytest.raises(UserError, match="top_k"):
        Routed(top_k=0).build(WIDTH, nnx.Rngs(0))
