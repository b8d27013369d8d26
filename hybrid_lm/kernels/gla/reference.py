"""The recurrence as its definition, one step at a time. The truth, and the decoding step."""

import jax
import jax.numpy as jnp


def gla(q_BLHK, k_BLHK, v_BLHP, log_decay_BLHK, resets_BL, initial_state_BHKP):
    """See `hybrid_lm.kernels.gla.gla`."""
    wide = initial_state_BHKP.dtype
    decay_BLHK = jnp.exp(log_decay_BLHK.astype(wide))
    if resets_BL is not None:
        decay_BLHK = jnp.where(resets_BL[..., None, None], 0.0, decay_BLHK)

    def step(state_BHKP, token):
        q_BHK, k_BHK, v_BHP, decay_BHK = token
        write = k_BHK[..., None] * v_BHP[:, :, None, :]
        state_BHKP = decay_BHK[..., None] * state_BHKP + write
        return state_BHKP, jnp.sum(state_BHKP * q_BHK[..., None], axis=2)

    operands = (q_BLHK, k_BLHK, v_BLHP, decay_BLHK)
    tokens = tuple(jnp.moveaxis(x, 1, 0).astype(wide) for x in operands)
    final_BHKP, y_LBHP = jax.lax.scan(step, initial_state_BHKP, tokens)
    return jnp.moveaxis(y_LBHP, 0, 1), final_BHKP
