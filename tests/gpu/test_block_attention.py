"""Pallas kernels of attention to chosen blocks on the GPU: float64 truth, odd lengths, repeats."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.block_attention import Tiles, block_attention
from tests.numerics import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

CHOSEN, LOCAL = 3, 2


# L, tokens of a block, K = P, H, G
@pytest.mark.parametrize(
    ("length", "size", "dim", "heads", "groups"),
    [
        (2500, 64, 128, 2, 2),
        (700, 64, 64, 4, 2),
        (2001, 32, 128, 2, 1),
        (1000, 128, 128, 1, 1),
        (500, 16, 16, 2, 2),
    ],
)
def test_they_match_float64(length, size, dim, heads, groups):
    rng = np.random.default_rng(0)
    count = -(-length // size) - 1

    def normal(*shape):
        return np.asarray(jnp.asarray(rng.normal(size=shape), jnp.bfloat16), np.float64)

    kv = (normal(1, length, groups, dim) for _ in range(2))
    gates = np.float32(rng.normal(size=(1, count, groups, CHOSEN))).astype(np.float64)
    # So many choose block 0 that its gradients are summed in pieces.
    drawn = [rng.permutation([-1, *range(1, count)]) for _ in range(count * groups)]
    chosen = np.reshape(drawn, (1, count, groups, -1))[..., :CHOSEN]
    chosen[..., 0] = 0
    inputs = normal(1, length, heads, dim), *kv, gates
    cotangent = normal(1, length, heads, dim)

    def gradients(implementation, cotangent, q, k, v, gates):
        form = partial(block_attention, local_blocks=LOCAL, implementation=implementation)
        seen = Tiles.of(None, 1, length, length, size), jnp.int32(chosen)
        y, pull = jax.vjp(lambda q, k, v, gates: form(q, k, v, *seen, gates), q, k, v, gates)
        return y, *pull(cotangent)

    # In float64: faster on the host than on a GPU.
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = [jnp.asarray(x, jnp.float64) for x in (cotangent, *inputs)]
        want = jax.device_get(jax.jit(partial(gradients, "reference"))(*wide))
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (cotangent, *inputs[:3])]
    narrow.append(jnp.asarray(gates, jnp.float32))
    run = jax.jit(partial(gradients, "pallas"))
    first = run(*narrow)
    assert_close(jax.tree.map(lambda x: np.asarray(x, np.float64), first), want, 0.005)
    for _ in range(20):
        again = run(*narrow)
        assert all(bool((x == y).all()) for x, y in zip(first, again, strict=True))
