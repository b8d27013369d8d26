"""Long convolutions of rows, filters and pasts of every length against their sum."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.long_conv import long_conv
from tests.numerics import assert_close, jit

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("float64")]
BATCH, WIDTH = 2, 3


def by_sum(u_BLD, filter_MD, resets_BL, past_BSD):
    y_BLD = np.zeros_like(u_BLD)
    earlier = past_BSD.shape[1]
    for row, x_SD in enumerate(np.concatenate([past_BSD, u_BLD], axis=1)):
        start = 0
        for t in range(u_BLD.shape[1]):
            start = earlier + t if resets_BL[row, t] else start
            seen_KD = x_SD[start : earlier + t + 1][::-1][: len(filter_MD)]
            y_BLD[row, t] = (filter_MD[: len(seen_KD)] * seen_KD).sum(axis=0)
    return y_BLD


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize(
    ("length", "taps", "earlier", "chunk_size"),
    [
        (1, 5, 3, 4),  # a decoding step
        (67, 5, 0, 4),  # fewer taps than are added one by one
        (40, 9, 5, 4),  # blocks that reach all next ones, by FFT
        (67, 20, 40, 64),  # and by products; a past longer than the filter
        (37, 64, 17, 16),  # more taps than tokens
        (5, 50, 40, 4),  # a long past of a short row
    ],
)
def test_it_is_the_sum_over_the_document(length, taps, earlier, chunk_size, packed):
    rng = np.random.default_rng(0)
    u_BLD = rng.normal(size=(BATCH, length, WIDTH))
    filter_MD = rng.normal(size=(taps, WIDTH))
    past_BSD = rng.normal(size=(BATCH, earlier, WIDTH))
    resets_BL = rng.random((BATCH, length)) < (0.15 if packed else 0)

    @jit
    def both(u_BLD, filter_MD, past_BSD):
        resets = jnp.asarray(resets_BL) if packed else None
        return [
            long_conv(
                u_BLD, filter_MD, resets, past_BSD, chunk_size=chunk_size, implementation=form
            )
            for form in ("xla", "reference")
        ]

    truth = by_sum(u_BLD, filter_MD, resets_BL, past_BSD)
    assert_close(both(u_BLD, filter_MD, past_BSD), [truth, truth], 1e-12)


GRADIENTS = """
import jax, jax.numpy as jnp, numpy as np
from hybrid_lm.kernels.long_conv import long_conv
rng = np.random.default_rng(0)
u_BLD, filter_MD = rng.normal(size=(1, 512, 64)), rng.normal(size=(512, 64))
loss = lambda *operands: jnp.sum(long_conv(*operands) ** 2)
gradients = jax.jit(jax.grad(loss, (0, 1)))(jnp.float32(u_BLD), jnp.float32(filter_MD))
assert all(bool(jnp.isfinite(gradient).all()) for gradient in gradients)
"""


def test_transforms_do_not_wait_for_each_other():
    """On a CPU with few threads, gradients of two sizes of block would never be there."""
    subprocess.run([sys.executable, "-c", GRADIENTS], timeout=300, check=True)
