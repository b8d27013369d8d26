"""Gated linear attention: ``S_t = diag(a_t) S_{t-1} + k_t v_t^T``, ``y_t = S_t^T q_t``.

Every key channel decays on its own (Yang et al. 2023, arXiv 2312.06635, equation 3).
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.gla import gpu, reference, xla


def gla(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHP: jax.Array,
    log_decay_BLHK: jax.Array,
    resets_BL: jax.Array | None = None,
    initial_state_BHKP: jax.Array | None = None,
    *,
    chunk_size: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the recurrence over L.

    Args:
        q_BLHK: read-out vectors.
        k_BLHK: keys.
        v_BLHP: values.
        log_decay_BLHK: float32 ``log a_t`` <= 0.
        resets_BL: True where the state is cleared before the token.
        initial_state_BHKP: float32 state before the first token; None is zero.
        chunk_size: tokens that one matrix product handles in the XLA form.
        implementation: see `Implementation`.

    Returns:
        y_BLHP in float32 (float64 for float64 inputs), and the state after the last token.
    """
    obstacles = {"pallas": gpu.obstacle(k_BLHK, v_BLHP), "xla": None, "reference": None}
    chosen = choose("gla", implementation, obstacles)
    batch, _, heads, value_dim = v_BLHP.shape
    if initial_state_BHKP is None:
        wide = jnp.promote_types(v_BLHP.dtype, jnp.float32)
        initial_state_BHKP = jnp.zeros((batch, heads, k_BLHK.shape[-1], value_dim), wide)
    operands = (q_BLHK, k_BLHK, v_BLHP, log_decay_BLHK, resets_BL, initial_state_BHKP)
    if chosen == "reference":
        return reference.gla(*operands)
    if chosen == "pallas":
        return gpu.gla(*operands)
    return xla.gla(*operands, chunk_size=chunk_size)
