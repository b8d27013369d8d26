"""The Pallas kernels for TPUs: equal the definition when interpreted, and lower for a TPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.diagonal_scan import selective_scan, selective_tpu
from hybrid_lm.kernels.pallas_tpu import Simulation
from hybrid_lm.kernels.ssd import ssd
from hybrid_lm.kernels.ssd import tpu as ssd_tpu
from tests.lowering import count_tpu_kernels
from tests.numerics import assert_close, jit

BATCH = 2
SIMULATED = Simulation()


def normals(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def starts(length: int) -> np.ndarray:
    return np.random.default_rng(1).random((BATCH, length)) < 0.1


def values_and_gradients(op, resets_BL, inputs, cotangents):
    def run(*inputs):
        *inputs, state = inputs
        return op(*inputs, resets_BL, state)

    values, pull = jax.vjp(run, *inputs)
    return *values, *pull(cotangents)


def ssd_operands(length: int, heads: int, groups: int, n: int, p: int, dtype=jnp.float32):
    """q, k, v, log decay and initial state; cotangents of outputs and last state."""
    qk = (BATCH, length, groups, n)
    q, k, v = normals(qk, qk, (BATCH, length, heads, p), dtype=dtype)
    log_decay, start, dy, dlast = normals(
        (BATCH, length, heads), (BATCH, heads, n, p), v.shape, (BATCH, heads, n, p)
    )
    return (q, k / n**0.5, v, -jnp.exp(log_decay - 1), start), (dy, dlast)


# Two blocks of heads: both of one group, or two groups in each.
@pytest.mark.parametrize(
    ("length", "block", "groups", "packed", "interpret"),
    [
        (21, 1, 1, True, True),
        pytest.param(21, 1, 1, True, SIMULATED, marks=pytest.mark.thorough),
        pytest.param(16, 2, 4, False, SIMULATED, marks=pytest.mark.thorough),
    ],
)
def test_ssd_equals_the_definition(monkeypatch, length, block, groups, packed, interpret):
    monkeypatch.setattr(ssd_tpu, "_CHUNK", 8)
    monkeypatch.setattr(ssd_tpu, "_HEADS", block)
    inputs, cotangents = ssd_operands(length, 2 * block, groups, 8, 4)
    resets_BL = starts(length) if packed else None
    forms = (
        partial(ssd_tpu.ssd, interpret=interpret),
        partial(ssd, implementation="reference"),
    )
    got, want = (
        jit(partial(values_and_gradients, op, resets_BL))(inputs, cotangents) for op in forms
    )
    assert_close(got, want)


def scan_operands(length: int, inner: int, states: int, dtype=jnp.float32):
    """u, step, A, B, C and initial state; cotangents of outputs and last state."""
    (u,) = normals((BATCH, length, inner), dtype=dtype)
    bc = (BATCH, length, states)
    step, a, b, c, start, dy, dlast = normals(
        u.shape, (inner, states), bc, bc, (BATCH, inner, states), u.shape, (BATCH, inner, states)
    )
    return (u, jax.nn.softplus(step - 2), -jnp.exp(a), b, c, start), (dy, dlast)


@pytest.mark.parametrize(
    ("length", "inner", "packed", "interpret"),
    [
        (10, 200, True, True),
        pytest.param(10, 200, True, SIMULATED, marks=pytest.mark.thorough),
        pytest.param(8, 1100, False, SIMULATED, marks=pytest.mark.thorough),
    ],
)
def test_selective_scan_equals_the_definition(monkeypatch, length, inner, packed, interpret):
    monkeypatch.setattr(selective_tpu, "_CHUNK", 4)
    inputs, cotangents = scan_operands(length, inner, 3)
    resets_BL = starts(length) if packed else None
    forms = (
        partial(selective_tpu.selective_scan, interpret=interpret),
        partial(selective_scan, implementation="reference"),
    )
    got, want = (
        jit(partial(values_and_gradients, op, resets_BL))(inputs, cotangents) for op in forms
    )
    assert_close(got, want)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("op", "operands"),
    [(ssd, (ssd_operands, 16, 2, 128, 64)), (selective_scan, (scan_operands, 1500, 16))],
)
def test_a_tpu_runs_them(monkeypatch, op, operands, dtype):
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    make, *sizes = operands
    inputs, cotangents = make(300, *sizes, dtype)
    run = partial(values_and_gradients, op, starts(300))
    assert count_tpu_kernels(run, inputs, cotangents) == 2


def test_heads_of_a_program_are_whole_tiles_and_whole_groups_or_parts_of_one():
    taken = {(64, 1): 8, (16, 16): 8, (12, 12): 12, (32, 2): 8, (24, 2): None, (20, 1): None}
    assert {of: ssd_tpu._heads_of_program(*of) for of in taken} == taken
