"""Chunked form: a short convolution inside a chunk, dense powers of A from chunk to chunk.

A Fourier transform over the row would mix the rounding of later tokens into earlier outputs.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.kernels.s4 import reference
from hybrid_lm.kernels.s4.chunk import chunk
from hybrid_lm.kernels.s4.system import System
from hybrid_lm.kernels.toeplitz import lower_toeplitz, product_by_run


def s4(
    u_BLD: jax.Array,
    system: System,
    resets_BL: jax.Array | None,
    h0_BDN: jax.Array,
    *,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.s4.s4`. What is left after whole chunks goes token by token."""
    batch, length, width = u_BLD.shape
    chunks, left = divmod(length, chunk_size)
    if not chunks:
        return reference.s4(u_BLD, system, resets_BL, h0_BDN)
    whole = length - left
    u_BnCD = u_written_BnCD = u_BLD[:, :whole].reshape(batch, chunks, chunk_size, width)
    taps_DC, reach_DCM, read_DCM, across_DMM = chunk(system, chunk_size)
    toeplitz_CCD = lower_toeplitz(taps_DC.T)
    stays_nB11, run_BnC = None, None  # starts of documents in the chunk so far
    if resets_BL is None:
        y_BnCD = einsum_f32("jid,bnjd->bnid", toeplitz_CCD, u_BnCD)
    else:
        run_BnC = jnp.cumsum(resets_BL[:, :whole].reshape(batch, chunks, chunk_size), axis=2)
        y_BnCD = product_by_run(toeplitz_CCD, u_BnCD, run_BnC)
        last_Bn1 = run_BnC[:, :, -1:]
        u_written_BnCD = jnp.where((run_BnC == last_Bn1)[..., None], u_BnCD, 0.0)
        stays_nB11 = jnp.moveaxis(last_Bn1 == 0, 1, 0)[..., None]
    written_BnDM = einsum_f32("djm,bnjd->bndm", reach_DCM[:, ::-1], u_written_BnCD)

    def step(h_BDM, at):
        written_BDM, stays_B11 = at
        next_BDM = einsum_f32("dlm,bdl->bdm", across_DMM, h_BDM)
        if stays_B11 is not None:
            next_BDM = jnp.where(stays_B11, next_BDM, 0.0)
        return next_BDM + written_BDM, h_BDM

    h_BDM = jnp.concatenate([h0_BDN.real, h0_BDN.imag], axis=-1)
    h_BDM, before_nBDM = jax.lax.scan(step, h_BDM, (jnp.moveaxis(written_BnDM, 1, 0), stays_nB11))
    y_before_BnCD = einsum_f32("dim,nbdm->bnid", read_DCM, before_nBDM)
    if run_BnC is not None:
        y_before_BnCD = jnp.where((run_BnC == 0)[..., None], y_before_BnCD, 0.0)
    y_BLD = (y_BnCD + y_before_BnCD).reshape(batch, -1, width)
    h_BDN = jax.lax.complex(*jnp.split(h_BDM, 2, axis=-1))
    if not left:
        return y_BLD, h_BDN
    resets_left_BL = None if resets_BL is None else resets_BL[:, whole:]
    y_left_BLD, h_BDN = reference.s4(u_BLD[:, whole:], system, resets_left_BL, h_BDN)
    return jnp.concatenate([y_BLD, y_left_BLD], axis=1), h_BDN
