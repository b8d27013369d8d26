"""The recurrence as its definition, one token at a time. The truth, and the decoding step."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.s4.system import System, twice_real


def s4(u_BLD: jax.Array, system: System, h0_BDN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.s4.s4`."""

    def token(h_BDN, u_BD):
        h_BDN = system.step(h_BDN) + system.b_DN * u_BD[..., None]
        return h_BDN, twice_real(system.c_DN, h_BDN)

    h_BDN, y_LBD = jax.lax.scan(token, h0_BDN, jnp.moveaxis(u_BLD, 1, 0))
    return jnp.moveaxis(y_LBD, 0, 1), h_BDN
