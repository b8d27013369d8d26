"""What a chunk of tokens does in S4, from parameters alone, by doubling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32, matrix_power
from hybrid_lm.kernels.s4.system import System, dense


class Chunk(NamedTuple):
    """Real, on states [Re h; Im h] of M numbers.

    ``taps_DC``: C A^i B; ``reach_DCM``: A^i B; ``read_DCM``: C A^(i+1); ``across_DMM``: A^C.
    """

    taps_DC: jax.Array
    reach_DCM: jax.Array
    read_DCM: jax.Array
    across_DMM: jax.Array


def chunk(system: System, size: int) -> Chunk:
    """Of ``size`` tokens. Powers up to 2 k are those up to k, and those times A^k."""
    a_DMM = power_DMM = dense(system)
    c_DM = 2 * jnp.concatenate([system.c_DN.real, -system.c_DN.imag], axis=-1)
    reach_DiM = jnp.concatenate([system.b_DN.real, system.b_DN.imag], axis=-1)[:, None]
    read_DiM = einsum_f32("dl,dlm->dm", c_DM, a_DMM)[:, None]
    tokens = 1
    while tokens < size:
        further_DiM = einsum_f32("dlm,dim->dil", power_DMM, reach_DiM)
        reach_DiM = jnp.concatenate([reach_DiM, further_DiM], axis=1)
        further_DiM = einsum_f32("dil,dlm->dim", read_DiM, power_DMM)
        read_DiM = jnp.concatenate([read_DiM, further_DiM], axis=1)
        power_DMM, tokens = matrix_power(power_DMM, 2), 2 * tokens
    reach_DCM, read_DCM = reach_DiM[:, :size], read_DiM[:, :size]
    across_DMM = power_DMM if tokens == size else matrix_power(a_DMM, size)
    return Chunk(einsum_f32("dm,dim->di", c_DM, reach_DCM), reach_DCM, read_DCM, across_DMM)
