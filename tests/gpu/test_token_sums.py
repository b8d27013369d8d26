"""The Pallas sums by token on the GPU: float64 truth, rare and frequent tokens, repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.token_sums import token_sums

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "vocab_size", "skew"), [((4, 4099), 8192, 1), ((4, 4099), 256, 8), ((1, 3), 7, 1)]
)
def test_sums_match_float64(shape, vocab_size, skew, dtype):
    rng = np.random.default_rng(0)
    tokens_BL = np.int32(vocab_size * rng.random(shape) ** skew)
    values_BLD = np.float32(jnp.asarray(rng.normal(size=(*shape, 512)), dtype))
    want_VD = np.zeros((vocab_size, 512))
    np.add.at(want_VD, tokens_BL, values_BLD.astype(np.float64))

    @jax.jit
    def run(values_BLD, tokens_BL):
        return token_sums(values_BLD, tokens_BL, vocab_size, implementation="pallas")

    operands = jnp.asarray(values_BLD, dtype), jnp.asarray(tokens_BL)
    first = run(*operands)
    error = np.sqrt(np.mean((np.float64(first) - want_VD) ** 2) / np.mean(want_VD**2))
    assert error <= 1e-5
    for _ in range(20):
        assert bool((run(*operands) == first).all())
