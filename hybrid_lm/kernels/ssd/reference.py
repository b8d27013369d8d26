"""The recurrence as its definition, one step at a time. The truth, and the decoding step."""

import jax
import jax.numpy as jnp


def ssd(q_BLGN, k_BLGN, v_BLHP, log_decay_BLH, resets_BL, initial_state_BHNP):
    """See `hybrid_lm.kernels.ssd.ssd`."""
    batch, length, heads, _ = v_BLHP.shape
    wide = initial_state_BHNP.dtype
    if log_decay_BLH is None:
        log_decay_BLH = jnp.zeros((batch, length, heads), wide)
    decay_BLH = jnp.exp(log_decay_BLH.astype(wide))
    if resets_BL is not None:
        decay_BLH = jnp.where(resets_BL[..., None], 0.0, decay_BLH)
    share = heads // k_BLGN.shape[2]

    def step(state_BHNP, token):
        q_BGN, k_BGN, v_BHP, decay_BH = token
        q_BHN = jnp.repeat(q_BGN, share, axis=1).astype(wide)
        k_BHN = jnp.repeat(k_BGN, share, axis=1).astype(wide)
        write = k_BHN[..., None] * v_BHP[:, :, None, :].astype(wide)
        state_BHNP = decay_BH[..., None, None] * state_BHNP + write
        return state_BHNP, jnp.sum(state_BHNP * q_BHN[..., None], axis=2)

    tokens = [jnp.moveaxis(x, 1, 0) for x in (q_BLGN, k_BLGN, v_BLHP, decay_BLH)]
    final_BHNP, y_LBHP = jax.lax.scan(step, initial_state_BHNP, tuple(tokens))
    return jnp.moveaxis(y_LBHP, 0, 1), final_BHNP
