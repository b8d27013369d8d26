"""S4 on a GPU: what a chunk does to outputs and states, for `time_invariant`."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels import time_invariant
from hybrid_lm.kernels.s4 import xla
from hybrid_lm.kernels.s4.chunk import chunk
from hybrid_lm.kernels.s4.system import System
from hybrid_lm.kernels.time_invariant import Maps, finish

_CHUNK = 64


def _maps(system: System, size: int) -> Maps:
    taps_DC, reach_DCM, read_DCM, across_DMM = chunk(system, size, exact=False)
    states = reach_DCM.shape[-1]
    fill = max(16, 1 << (states - 1).bit_length()) - states

    def filled(x, *axes):
        return jnp.pad(x, [(0, fill if axis in axes else 0) for axis in range(x.ndim)])

    across_DMM = filled(across_DMM, 1, 2)
    write_DCM, read_DCM = filled(reach_DCM[:, ::-1], 2), filled(read_DCM, 2)
    return Maps(taps_DC, write_DCM[:, None], read_DCM[:, None], across_DMM)


def obstacle(u_BLD: jax.Array, system: System) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    common = time_invariant.obstacle(u_BLD, 2 * system.b_DN.shape[1])
    if common is None and u_BLD.dtype != jnp.bfloat16:
        return "products with whole matrices are for bf16 inputs"
    return common


def s4(
    u_BLD: jax.Array,
    system: System,
    resets_BL: jax.Array | None,
    initial_state_BDN: jax.Array | None,
    skip_D: jax.Array | None,
    *,
    gelu: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.s4.s4`; u in its own dtype."""

    pairs = system.b_DN.shape[1]
    maps = _maps(system, _CHUNK).skipping(skip_D)

    def to_parts(h_BDN):
        h_BDM = jnp.concatenate([h_BDN.real, h_BDN.imag], axis=-1)
        fill = maps.across.shape[-1] - 2 * pairs
        return jnp.pad(h_BDM, ((0, 0), (0, 0), (0, fill)))[:, :, None]

    def from_parts(h_BDQP):
        return jax.lax.complex(h_BDQP[:, :, 0, :pairs], h_BDQP[:, :, 0, pairs : 2 * pairs])

    def remainder(u_BLD, resets_BL, h_BDQP):
        operands = (system, resets_BL, from_parts(h_BDQP))
        y_BLD, h_BDN = xla.s4(u_BLD.astype(jnp.float32), *operands, chunk_size=_CHUNK)
        return finish(y_BLD, u_BLD, skip_D, gelu=gelu), to_parts(h_BDN)

    state = None if initial_state_BDN is None else to_parts(initial_state_BDN)
    operands = (u_BLD, maps, resets_BL, state, remainder)
    y_BLD, last_BDQP = time_invariant.scan(*operands, gelu=gelu, interpret=interpret)
    return y_BLD, from_parts(last_BDQP)
