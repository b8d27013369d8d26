"""S4: its start, its discretisation, and its two modes with the same parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.s4 import discretise, kernel, s4, two_sided
from hybrid_lm.mixers import S4
from hybrid_lm.mixers.s4 import hippo_legs
from tests.laws.cases import WIDTH, module, packed_context, parameters, run
from tests.numerics import assert_close, jit

N, LENGTH = 8, 21
STEP = 0.05
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("float64")]


def both(half_N: np.ndarray) -> np.ndarray:
    """A vector of both of each conjugate pair."""
    return np.concatenate([half_N, half_N.conj()])


def channel():
    """One channel's a, p, b and c [1, N / 2], and its step [1]."""
    rng = np.random.default_rng(0)
    c_N = rng.normal(size=N // 2) + 1j * rng.normal(size=N // 2)
    vectors = [jnp.asarray(v_N)[None] for v_N in (*hippo_legs(N), c_N)]
    return *vectors, jnp.asarray([STEP])


def test_it_starts_as_hippo_legs():
    place_N = np.arange(N)
    root_N = np.sqrt(2 * place_N + 1)
    hippo_NN = -np.tril(np.outer(root_N, root_N), -1) - np.diag(place_N + 1.0)
    a_N, p_N, b_N = map(both, hippo_legs(N))
    ours_NN = np.diag(a_N) - np.outer(p_N, p_N.conj())
    # Equal in another basis: P^T A^k B is the same for every k.
    hippo_v_N, ours_v_N = root_N, b_N
    for _ in range(2 * N):
        expected = root_N / 2**0.5 @ hippo_v_N
        np.testing.assert_allclose(p_N.conj() @ ours_v_N, expected, rtol=1e-9)
        scale = np.linalg.norm(hippo_v_N)
        hippo_v_N, ours_v_N = hippo_NN @ hippo_v_N / scale, ours_NN @ ours_v_N / scale


def test_both_modes_are_the_dense_bilinear_recurrence():
    u_L = np.random.default_rng(1).normal(size=LENGTH)
    a_N, p_N, b_N, c_N = (both(np.asarray(v_1N[0])) for v_1N in channel()[:4])
    a_NN, eye_NN = np.diag(a_N) - np.outer(p_N, p_N.conj()), np.eye(N)
    inverse_NN = np.linalg.inv(eye_NN - STEP / 2 * a_NN)
    decay_NN, write_N = inverse_NN @ (eye_NN + STEP / 2 * a_NN), inverse_NN @ b_N * STEP
    h_N, y_L = np.zeros(N), []
    for u in u_L:
        h_N = decay_NN @ h_N + write_N * u
        y_L.append((c_N @ h_N).real)

    u_BLD = jnp.asarray(u_L)[None, :, None]
    for implementation in ("reference", "xla"):
        y_BLD, h_BDN = s4(
            u_BLD, discretise(*channel()), chunk_size=4, implementation=implementation
        )
        assert_close((y_BLD[0, :, 0], both(np.asarray(h_BDN[0, 0]))), (np.array(y_L), h_N), 1e-12)
    for length in (LENGTH, LENGTH + 1):  # the root of unity -1 is only in the second
        kernel_LD = kernel(*channel(), length)[:LENGTH]
        y_BLD = two_sided(u_BLD, kernel_LD, jnp.zeros_like(kernel_LD))
        assert_close(y_BLD[0, :, 0], np.array(y_L), 1e-12)


def test_without_causality_it_looks_both_ways_and_not_at_padding():
    config = S4(state_size=N, causal=False)
    ids_BL = np.array([[3] * 8 + [0] * 3], np.int32)
    ctx, params = packed_context(ids_BL), parameters(config)
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(*ids_BL.shape, WIDTH)))

    @jit
    def influence(x_BLD):
        jacobian = jax.jacrev(lambda x: run(config, params, x, ctx)[0].sum(0))(x_BLD)
        return jnp.abs(jacobian).max(axis=(1, 3, 4))  # [output token, input token]

    depends_LL = np.asarray(influence(x_BLD))[:8]
    assert (depends_LL[:, :8] > 1e-9).all() and not depends_LL[:, 8:].any()
    assert module(config, params).initial_state(1, jnp.float32) == ()
    with pytest.raises(UserError, match="no state"):
        run(config, params, x_BLD, ctx, {})
