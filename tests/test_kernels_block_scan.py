"""What finished blocks leave behind: kernels equal the associative scans, and lower for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.block_scan import LOW, gpu, xla
from tests.lowering import count_triton_kernels
from tests.numerics import assert_close, jit

BATCH, CHUNKS, MARKS, HEADS, P = 2, 6, 4, 2, 8
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def keeps() -> np.ndarray:
    return np.random.default_rng(1).random((BATCH, CHUNKS, MARKS)) < 0.7


def carried(rng):
    """Sums per mark, and their start."""
    shape = (BATCH, CHUNKS, MARKS, HEADS, P)
    return rng.normal(size=shape), rng.normal(size=shape[:1] + shape[2:])


def merged(rng):
    """Log masses, some of nothing, and averages, and their starts."""
    values = carried(rng)
    log_mass, start = (rng.normal(size=x.shape[:-1]) for x in values)
    log_mass[rng.random(log_mass.shape) < 0.2] = LOW
    start[0] = LOW
    return log_mass, values[0], start, values[1]


def values_and_gradients(scan, *operands):
    results, pull = jax.vjp(scan, *operands)
    cotangents = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), results)
    return results, pull(jax.tree.map(lambda x, like: x.astype(like.dtype), cotangents, results))


SCANS = pytest.mark.parametrize(
    ("name", "operands"), [("carry", carried), ("merge", merged)], ids=["carry", "merge"]
)


@SCANS
def test_the_kernels_equal_the_associative_scan(name, operands):
    inputs = [jnp.asarray(x, jnp.float32) for x in operands(np.random.default_rng(0))]
    forms = getattr(xla, name), partial(getattr(gpu, name), interpret=True)
    want, got = (jit(partial(values_and_gradients, partial(f, keeps())))(*inputs) for f in forms)
    assert_close(got, want)


@SCANS
def test_the_kernels_lower_for_cuda(name, operands):
    inputs = [jnp.asarray(x, jnp.float32) for x in operands(np.random.default_rng(0))]
    scan = partial(getattr(gpu, name), keeps())
    assert count_triton_kernels(partial(values_and_gradients, scan), *inputs) == 2
