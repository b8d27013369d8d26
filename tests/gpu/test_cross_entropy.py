"""The Pallas cross-entropy on the GPU: float64 truth, extreme logits, tokens that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.cross_entropy import cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("tokens", "vocab_size", "scale"), [(1000, 8192, 3), (7, 128, 1e4)])
def test_values_match_float64(tokens, vocab_size, scale, dtype):
    rng = np.random.default_rng(0)
    logits_BCV = np.float32(scale * rng.normal(size=(1, tokens, vocab_size)))
    targets_BC = jnp.asarray(rng.integers(0, vocab_size, (1, tokens)), jnp.int32)
    counts_BC = jnp.asarray(rng.random((1, tokens)) < 0.8)
    with jax.enable_x64(True):
        wide = jnp.asarray(logits_BCV, jnp.float64)
        want = cross_entropy(wide, targets_BC, counts_BC, jnp.float64, implementation="reference")
        want = [np.asarray(a) for a in want]

    @jax.jit
    def run(logits_BCV, targets_BC, counts_BC):
        return cross_entropy(logits_BCV, targets_BC, counts_BC, dtype, implementation="pallas")

    for got, truth in zip(run(logits_BCV, targets_BC, counts_BC), want, strict=True):
        got = np.asarray(got.astype(jnp.float32), np.float64)
        error = np.sqrt(np.mean((got - truth) ** 2) / np.mean(truth**2))
        assert error <= (0.005 if got.ndim == 3 and dtype == "bfloat16" else 1e-5)
