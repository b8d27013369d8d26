"""The Pallas kernels of attention to chosen blocks: equal the definition, and lower for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.block_attention import Tiles, block_attention, gpu
from tests.lowering import count_triton_kernels
from tests.numerics import assert_close, jit

BATCH, HEADS, GROUPS, DIM, SIZE, LOCAL, CHOSEN = 2, 4, 2, 16, 16, 2, 3
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def operands(length: int, dtype=jnp.float32):
    """q, k, v and log gates to differentiate, the chosen blocks, and a cotangent."""
    rng = np.random.default_rng(0)
    count = -(-length // SIZE) - 1

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    kv = (normal(BATCH, length, GROUPS, DIM) for _ in range(2))
    gates = jnp.asarray(rng.normal(size=(BATCH, count, GROUPS, CHOSEN)), jnp.float32)
    # All different, some of them too late: -1 and blocks that are not earlier choose nothing. So
    # many choose block 0 that its gradients are summed in pieces.
    drawn = [rng.permutation([-1, *range(1, count)]) for _ in range(BATCH * count * GROUPS)]
    chosen = np.reshape(drawn, (BATCH, count, GROUPS, -1))[..., :CHOSEN]
    chosen[..., 0] = 0
    inputs = normal(BATCH, length, HEADS, DIM), *kv, gates
    return inputs, jnp.asarray(chosen, jnp.int32), normal(BATCH, length, HEADS, DIM)


def values_and_gradients(form, chosen_BTGM, cotangent, q, k, v, gates):
    length = q.shape[1]
    tiles = Tiles.of(None, BATCH, length, length, SIZE)

    def run(q, k, v, gates):
        return form(q, k, v, tiles, chosen_BTGM, gates, local_blocks=LOCAL)

    y, pull = jax.vjp(run, q, k, v, gates)
    return y, *pull(cotangent)


@pytest.mark.parametrize("length", [410, pytest.param(96, marks=pytest.mark.thorough)])
def test_they_equal_the_definition(length):
    inputs, chosen_BTGM, cotangent = operands(length)
    reference = partial(block_attention, implementation="reference")
    forms = partial(gpu.block_attention, interpret=True), reference
    got, want = (
        jit(partial(values_and_gradients, form, chosen_BTGM, cotangent))(*inputs) for form in forms
    )
    assert_close(got, want)


def test_they_lower_for_cuda():
    inputs, chosen_BTGM, cotangent = operands(150, jnp.bfloat16)
    run = partial(values_and_gradients, gpu.block_attention, chosen_BTGM, cotangent)
    assert count_triton_kernels(run, *inputs) == 4
