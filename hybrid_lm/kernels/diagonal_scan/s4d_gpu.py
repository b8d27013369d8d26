"""S4D on a GPU: what a chunk does to outputs and states, for `time_invariant`."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels import time_invariant
from hybrid_lm.kernels.diagonal_scan import s4d_xla
from hybrid_lm.kernels.time_invariant import Maps, finish

_CHUNK = 64
_REMAINDER_CHUNK = 32


def _maps(log_decay_DN: jax.Array, c_DN: jax.Array, chunk: int) -> Maps:
    pairs = c_DN.shape[1]
    fill = ((0, 0), (0, max(16, 1 << (pairs - 1).bit_length()) - pairs))
    log_decay_DP, c_DP = jnp.pad(log_decay_DN, fill), jnp.pad(c_DN, fill)
    power_C11 = jnp.arange(chunk, dtype=jnp.float32)[:, None]

    def parts(x, axis=1):
        return jnp.stack([x.real, x.imag], axis=axis)

    decay_DCP = jnp.exp(power_C11 * log_decay_DP[:, None])  # over i tokens
    taps_DC = 2 * jnp.sum(c_DP[:, None] * decay_DCP, axis=-1).real
    read_DCP = 2 * (c_DP * jnp.exp(log_decay_DP))[:, None] * decay_DCP
    across_DP = jnp.exp(chunk * log_decay_DP)
    return Maps(taps_DC, parts(decay_DCP[:, ::-1]), parts(read_DCP.conj()), parts(across_DP))


def scan(
    u_BLD: jax.Array,
    log_decay_DN: jax.Array,
    c_DN: jax.Array,
    resets_BL: jax.Array | None,
    initial_state_BDN: jax.Array | None,
    skip_D: jax.Array | None,
    *,
    gelu: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.diagonal_scan.s4d.s4d_scan`; u in its own dtype."""

    pairs = c_DN.shape[1]
    maps = _maps(log_decay_DN, c_DN, _CHUNK).skipping(skip_D)

    def to_parts(h_BDN):
        h_BDQN = jnp.stack([h_BDN.real, h_BDN.imag], axis=2)
        fill = maps.across.shape[-1] - pairs
        return jnp.pad(h_BDQN, ((0, 0), (0, 0), (0, 0), (0, fill)))

    def from_parts(h_BDQP):
        return jax.lax.complex(h_BDQP[:, :, 0, :pairs], h_BDQP[:, :, 1, :pairs])

    def remainder(u_BLD, resets_BL, h_BDQP):
        operands = (log_decay_DN, c_DN, resets_BL, from_parts(h_BDQP))
        wide_BLD = u_BLD.astype(jnp.float32)
        y_BLD, h_BDN = s4d_xla.scan(wide_BLD, *operands, chunk_size=_REMAINDER_CHUNK)
        return finish(y_BLD, u_BLD, skip_D, gelu=gelu), to_parts(h_BDN)

    state = None if initial_state_BDN is None else to_parts(initial_state_BDN)
    operands = (u_BLD, maps, resets_BL, state, remainder)
    y_BLD, last_BDQP = time_invariant.scan(*operands, gelu=gelu, interpret=interpret)
    return y_BLD, from_parts(last_BDQP)
