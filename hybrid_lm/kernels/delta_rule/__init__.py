"""The delta rule: ``S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T``, ``y_t = S_t^T q_t``.

A state that replaces what it returns for a key instead of adding to it: DeltaNet (no decay;
Yang et al. 2024, arXiv 2406.06484) and Gated DeltaNet (arXiv 2412.06464, equation 10).
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.delta_rule import gpu, reference, xla
from hybrid_lm.kernels.dispatch import choose


def delta_rule(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHP: jax.Array,
    beta_BLH: jax.Array,
    log_decay_BLH: jax.Array | None = None,
    resets_BL: jax.Array | None = None,
    initial_state_BHKP: jax.Array | None = None,
    *,
    chunk_size: int = 64,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the recurrence over L.

    Args:
        q_BLHK: read-out vectors.
        k_BLHK: keys. The recurrence is stable where ``beta |k|^2`` is within [0, 2].
        v_BLHP: values.
        beta_BLH: float32 writing strengths ``b_t``.
        log_decay_BLH: float32 ``log a_t`` <= 0; None means no decay (0).
        resets_BL: True where the state is cleared before the token.
        initial_state_BHKP: float32 state before the first token; None is zero.
        chunk_size: tokens that one matrix product handles in the XLA form.
        implementation: see `Implementation`.

    Returns:
        y_BLHP in float32 (float64 for float64 inputs), and the state after the last token.
    """
    obstacles = {"pallas": gpu.obstacle(k_BLHK, v_BLHP), "xla": None, "reference": None}
    chosen = choose("delta_rule", implementation, obstacles)
    batch, _, heads, value_dim = v_BLHP.shape
    if initial_state_BHKP is None:
        wide = jnp.promote_types(v_BLHP.dtype, jnp.float32)
        initial_state_BHKP = jnp.zeros((batch, heads, k_BLHK.shape[-1], value_dim), wide)
    operands = (q_BLHK, k_BLHK, v_BLHP, beta_BLH, log_decay_BLH, resets_BL, initial_state_BHKP)
    if chosen == "reference":
        return reference.delta_rule(*operands)
    if chosen == "pallas":
        return gpu.delta_rule(*operands)
    return xla.delta_rule(*operands, chunk_size=chunk_size)
