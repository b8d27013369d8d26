"""Stacks: the scan over stacked parameters equals a loop over layers, sharded over eight devices
equals unsharded, and the program does not grow with repeats.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm import sharding
from hybrid_lm.loss import token_nll
from hybrid_lm.mixers import Context
from hybrid_lm.model import Model, ModelConfig
from hybrid_lm.sharding import MeshConfig
from tests.laws.cases import Case, cases, packed_context, packed_rows
from tests.numerics import assert_close, jit

VOCAB = 32
WIDTH = 16


@cache
def one_mixer(case: Case, repeats: int) -> Model:
    """A stack of one mixer."""
    config = ModelConfig(f"m*{repeats}", {"m": case.config}, width=WIDTH, mlp_width=32)
    return Model(config, VOCAB)


def loss(model, params, tokens_BL, targets_BL, ctx):
    x_BLD = model.apply(params, tokens_BL, ctx).exits[-1]
    return token_nll(model.readout(params, x_BLD), params["embedding"], targets_BL).mean()


def operands(model, batch, length):
    """Parameters, tokens, targets and the context of packed rows."""
    rng = np.random.default_rng(0)
    tokens_BL, targets_BL = rng.integers(0, VOCAB, (2, batch, length)).astype(np.int32)
    ctx = packed_context(packed_rows(rng, batch, length))
    return jit(model.init)(jax.random.key(0)), tokens_BL, targets_BL, ctx


@pytest.mark.parametrize("case", cases(), ids=str)
def test_scan_equals_a_loop_over_layers(case: Case):
    model, single = one_mixer(case, 3), one_mixer(case, 1)
    params, tokens_BL, _, ctx = operands(model, 2, 12)

    @jit
    def both(params):
        together_BLD = model.apply(params, tokens_BL, ctx).exits[-1]
        x_BLD = params["embedding"][tokens_BL] * WIDTH**0.5
        for layer in range(3):
            stacked = params["groups"]["group1"]
            one = jax.tree.map(lambda p: p[layer : layer + 1], stacked)  # noqa: B023
            group = single.plan.groups[0]
            x_BLD, _ = single._run_group(group, one, x_BLD, ctx, None, None, "none")
        return together_BLD, x_BLD

    together_BLD, x_BLD = both(params)
    assert_close(together_BLD, x_BLD)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_sharded_equals_unsharded(case: Case, mesh: tuple[int, int, int]):
    model = one_mixer(case, 2)
    params, tokens_BL, targets_BL, ctx = operands(model, 8, 8)
    gradients = jax.value_and_grad(lambda *args: loss(model, *args))
    want = jit(gradients)(params, tokens_BL, targets_BL, ctx)
    devices = MeshConfig(*mesh).build()
    with jax.set_mesh(devices):
        placed = jax.device_put(params, sharding.shardings(model.axes, params, devices))
        rows = sharding.spec(("batch", "length"), tokens_BL.shape, devices)
        place = jax.sharding.NamedSharding(devices, rows)
        inputs = jax.device_put((tokens_BL, targets_BL, ctx), place)
        assert len(placed["embedding"].sharding.device_set) == 8
        got = jit(gradients)(placed, *inputs)
    assert_close(jax.device_get(got), want)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_program_does_not_grow_with_repeats(case: Case):
    def operations(repeats):
        model = one_mixer(case, repeats)
        tokens_BL = jnp.zeros((1, 8), jnp.int32)
        ctx = Context.of_documents(1, 8)
        gradients = jax.grad(lambda params: loss(model, params, tokens_BL, tokens_BL, ctx))
        lowered = jax.jit(gradients).lower(model.abstract_params())
        return lowered.as_text().count(" = ")

    assert operations(2) == operations(8)
