"""The recurrence as its definition, one token at a time. The truth, and the decoding step."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.s4.system import System, twice_real


def s4(
    u_BLD: jax.Array, system: System, resets_BL: jax.Array | None, h0_BDN: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.s4.s4`."""

    def token(h_BDN, at):
        u_BD, reset_B = at
        if reset_B is not None:
            h_BDN = jnp.where(reset_B[:, None, None], 0.0, h_BDN)
        h_BDN = system.step(h_BDN) + system.b_DN * u_BD[..., None]
        return h_BDN, twice_real(system.c_DN, h_BDN)

    time_major = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (u_BLD, resets_BL))
    h_BDN, y_LBD = jax.lax.scan(token, h0_BDN, time_major)
    return jnp.moveaxis(y_LBD, 0, 1), h_BDN
