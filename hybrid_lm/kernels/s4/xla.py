"""Chunked form: a short convolution inside a chunk, dense powers of A from chunk to chunk.

The kernel of a chunk and the maps to and from its states come from C steps on parameters alone. A
Fourier transform over the row would mix the rounding of later tokens into earlier outputs.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.kernels.s4 import reference
from hybrid_lm.kernels.s4.system import System, dense, matrix_power, twice_real
from hybrid_lm.kernels.toeplitz import lower_toeplitz


def s4(
    u_BLD: jax.Array, system: System, h0_BDN: jax.Array, *, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.s4.s4`. What is left after whole chunks goes token by token."""
    batch, length, width = u_BLD.shape
    chunks, left = divmod(length, chunk_size)
    if not chunks:
        return reference.s4(u_BLD, system, h0_BDN)
    u_BnCD = u_BLD[:, : length - left].reshape(batch, chunks, chunk_size, width)

    def power(carry, _):
        reach_DN, read_DN = carry
        back_D1 = twice_real(read_DN, system.down_DN)[:, None]
        next_read_DN = read_DN * system.decay_DN - back_D1 * system.across_DN
        return (system.step(reach_DN), next_read_DN), (reach_DN, next_read_DN)

    # A^i B and C A^(i+1), for i < C.
    start = (system.b_DN, system.c_DN)
    _, (reach_CDN, read_CDN) = jax.lax.scan(power, start, length=chunk_size)
    kernel_CD = twice_real(system.c_DN, reach_CDN)
    y_BnCD = einsum_f32("jid,bnjd->bnid", lower_toeplitz(kernel_CD), u_BnCD)

    # Real vectors [Re h; Im h] from here on.
    write_CDM = jnp.concatenate([reach_CDN.real, reach_CDN.imag], axis=-1)[::-1]
    read_CDM = 2 * jnp.concatenate([read_CDN.real, -read_CDN.imag], axis=-1)
    written_BnDM = einsum_f32("jdm,bnjd->bndm", write_CDM, u_BnCD)
    across_chunk_DMM = matrix_power(dense(system), chunk_size)

    def chunk(h_BDM, written_BDM):
        return einsum_f32("dlm,bdm->bdl", across_chunk_DMM, h_BDM) + written_BDM, h_BDM

    h_BDM = jnp.concatenate([h0_BDN.real, h0_BDN.imag], axis=-1)
    h_BDM, before_nBDM = jax.lax.scan(chunk, h_BDM, jnp.moveaxis(written_BnDM, 1, 0))
    y_BnCD += einsum_f32("idm,nbdm->bnid", read_CDM, before_nBDM)
    y_BLD = y_BnCD.reshape(batch, -1, width)
    h_BDN = jax.lax.complex(*jnp.split(h_BDM, 2, axis=-1))
    if not left:
        return y_BLD, h_BDN
    y_left_BLD, h_BDN = reference.s4(u_BLD[:, length - left :], system, h_BDN)
    return jnp.concatenate([y_BLD, y_left_BLD], axis=1), h_BDN
