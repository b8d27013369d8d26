"""State-space duality: ``S_t = exp(a_t) S_{t-1} + k_t v_t^T``, ``y_t = S_t^T q_t``.

The recurrence behind Mamba-2 (q = C, k = B, v = dt x; Dao & Gu 2024, arXiv 2405.21060) and behind
causal linear attention (no decay; Katharopoulos et al. 2020, arXiv 2006.16236).
"""

from functools import partial

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.dispatch import choose, on_tpu
from hybrid_lm.kernels.ssd import gpu, reference, tpu, xla


def ssd(
    q_BLGN: jax.Array,
    k_BLGN: jax.Array,
    v_BLHP: jax.Array,
    log_decay_BLH: jax.Array | None = None,
    resets_BL: jax.Array | None = None,
    initial_state_BHNP: jax.Array | None = None,
    *,
    strength_BLH: jax.Array | None = None,
    skip_H: jax.Array | None = None,
    chunk_size: int = 128,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the recurrence over L.

    Args:
        q_BLGN: read-out vectors, G dividing H (several heads share one).
        k_BLGN: write vectors.
        v_BLHP: values.
        log_decay_BLH: float32 ``a_t`` <= 0; None means no decay (0).
        resets_BL: True where the state is cleared before the token.
        initial_state_BHNP: float32 state before the first token; None is zero.
        strength_BLH: float32 ``s_t``: ``s_t v_t`` is written in place of ``v_t``.
        skip_H: float32 ``d``: the outputs are ``y_t + d v_t``.
        chunk_size: tokens that one matrix product handles in the XLA form.
        implementation: see `Implementation`.

    Returns:
        y_BLHP in float32 (float64 for float64 inputs), and the state after the last token.
    """
    pallas = tpu if on_tpu() else gpu
    obstacles = {"pallas": pallas.obstacle(k_BLGN, v_BLHP), "xla": None, "reference": None}
    chosen = choose("ssd", implementation, obstacles)
    batch, _, heads, value_dim = v_BLHP.shape
    wide = jnp.promote_types(v_BLHP.dtype, jnp.float32)
    if initial_state_BHNP is None:
        initial_state_BHNP = jnp.zeros((batch, heads, k_BLGN.shape[-1], value_dim), wide)
    rest = (log_decay_BLH, resets_BL, initial_state_BHNP)
    if chosen == "pallas" and pallas is gpu:
        return gpu.ssd(q_BLGN, k_BLGN, v_BLHP, *rest, strength_BLH, skip_H)
    run = {
        "pallas": tpu.ssd,
        "xla": partial(xla.ssd, chunk_size=chunk_size),
        "reference": reference.ssd,
    }[chosen]
    writes_BLHP = v_BLHP
    if strength_BLH is not None:
        writes_BLHP = (v_BLHP * strength_BLH[..., None]).astype(v_BLHP.dtype)
    y_BLHP, state_BHNP = run(q_BLGN, k_BLGN, writes_BLHP, *rest)
    if skip_H is not None:
        y_BLHP += skip_H[:, None] * v_BLHP
    return y_BLHP, state_BHNP
