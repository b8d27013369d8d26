"""The recurrence as its definition, one token at a time. The truth, and the decoding step."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.diagonal_scan.recurrence import Recurrence


def scan(
    recurrence: Recurrence, x: dict[str, jax.Array], resets_BL: jax.Array | None, h0: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Inputs [B, L, ...] -> outputs [B, L, ...] and the state after the last token."""

    def token(h, at):
        x_t, reset_B = at
        decay = jnp.exp(recurrence.log_decay(x_t["step"]))
        if reset_B is not None:
            decay = jnp.where(reset_B.reshape(-1, *[1] * (h.ndim - 1)), 0.0, decay)
        h = decay * h + recurrence.write(x_t)
        return h, recurrence.read(x_t, h)

    time_major = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, resets_BL))
    h, y = jax.lax.scan(token, h0, time_major)
    return jnp.moveaxis(y, 0, 1), h
