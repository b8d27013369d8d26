"""The recurrence as its definition, one step at a time. The truth, and the decoding step."""

import jax
import jax.numpy as jnp


def delta_rule(q_BLHK, k_BLHK, v_BLHP, beta_BLH, log_decay_BLH, resets_BL, initial_state_BHKP):
    """See `hybrid_lm.kernels.delta_rule.delta_rule`."""
    wide = initial_state_BHKP.dtype
    decay_BLH = jnp.ones_like(beta_BLH) if log_decay_BLH is None else jnp.exp(log_decay_BLH)
    if resets_BL is not None:
        decay_BLH = jnp.where(resets_BL[..., None], 0.0, decay_BLH)

    def step(state_BHKP, token):
        q_BHK, k_BHK, v_BHP, beta_BH, decay_BH = token
        state_BHKP = decay_BH[..., None, None] * state_BHKP
        found_BHP = jnp.sum(state_BHKP * k_BHK[..., None], axis=2)
        write_BHP = beta_BH[..., None] * (v_BHP - found_BHP)
        state_BHKP += k_BHK[..., None] * write_BHP[:, :, None, :]
        return state_BHKP, jnp.sum(state_BHKP * q_BHK[..., None], axis=2)

    operands = (q_BLHK, k_BLHK, v_BLHP, beta_BLH, decay_BLH)
    tokens = tuple(jnp.moveaxis(x, 1, 0).astype(wide) for x in operands)
    final_BHKP, y_LBHP = jax.lax.scan(step, initial_state_BHKP, tokens)
    return jnp.moveaxis(y_LBHP, 0, 1), final_BHKP
