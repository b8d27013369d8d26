"""The sum as its definition, one token at a time. The truth, and the decoding step."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32


def long_conv(
    u_BLD: jax.Array, filter_MD: jax.Array, resets_BL: jax.Array | None, past_BSD: jax.Array
) -> jax.Array:
    """See `hybrid_lm.kernels.long_conv.long_conv`."""
    taps = len(filter_MD)
    padded = jnp.pad(past_BSD, ((0, 0), (taps, 0), (0, 0)))
    if resets_BL is None:
        resets_BL = jnp.zeros(u_BLD.shape[:2], bool)

    def token(window_BMD, at):
        u_BD, reset_B = at
        earlier_BMD = jnp.where(reset_B[:, None, None], 0, window_BMD[:, 1:])
        window_BMD = jnp.concatenate([earlier_BMD, u_BD[:, None]], axis=1)
        return window_BMD, einsum_f32("bmd,md->bd", window_BMD, filter_MD[::-1])

    time_major = jnp.moveaxis(u_BLD, 1, 0), jnp.moveaxis(resets_BL, 1, 0)
    _, y_LBD = jax.lax.scan(token, padded[:, padded.shape[1] - taps :], time_major)
    return jnp.moveaxis(y_LBD, 0, 1)
