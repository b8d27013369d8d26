"""The diagonal state space of S4D: complex, per channel, the same at every token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hybrid_lm.kernels import time_invariant
from hybrid_lm.kernels.diagonal_scan import reference, s4d_gpu, s4d_xla
from hybrid_lm.kernels.diagonal_scan.recurrence import Recurrence
from hybrid_lm.kernels.dispatch import choose


@dataclass(frozen=True)
class _S4D(Recurrence):
    """For the definition; the chunked form is `s4d_xla`'s own."""

    log_decay_DN: jax.Array
    c_DN: jax.Array

    def log_decay(self, step):
        # `step` counts tokens.
        return step[..., None, None] * _lift(self.log_decay_DN, step.ndim)

    def write(self, x):
        return x["u"][..., None].astype(self.c_DN.dtype)

    def read(self, x, h):
        return 2 * jnp.sum(h * _lift(self.c_DN, x["step"].ndim), axis=-1).real


def _lift(x_DN, leading):
    return x_DN.reshape(*[1] * leading, *x_DN.shape)


def s4d_scan(
    u_BLD: jax.Array,
    log_decay_DN: jax.Array,
    c_DN: jax.Array,
    resets_BL: jax.Array | None = None,
    initial_state_BDN: jax.Array | None = None,
    *,
    skip_D: jax.Array | None = None,
    gelu: bool = False,
    chunk_size: int = 32,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``h_t = exp(log_decay) h_{t-1} + u_t``, ``y_t = 2 Re(c . h_t) + skip u_t``, per channel D.

    N counts conjugate pairs (half the state size). Equation 2 and section 3 of Gu et al. 2022
    (arXiv 2206.11893) with the discretised B folded into ``c``.

    Args:
        u_BLD: inputs; computed in float32 (float64 if given).
        log_decay_DN: complex ``step * A`` with negative real part.
        c_DN: complex ``C * B_bar``.
        resets_BL: True where the state is cleared before the token.
        initial_state_BDN: complex state before the first token; None is zero.
        skip_D: None is zero.
        gelu: give the GELU of y, in the dtype of u.
        chunk_size: tokens of a chunk in the XLA form.

    Returns:
        y_BLD (real, in at least float32 without GELU) and the complex state after the last token.
    """
    obstacle = time_invariant.obstacle(u_BLD, 2 * c_DN.shape[1])
    obstacles = {"pallas": obstacle, "xla": None, "reference": None}
    chosen = choose("s4d_scan", implementation, obstacles)
    if chosen == "pallas":
        operands = (u_BLD, log_decay_DN, c_DN, resets_BL, initial_state_BDN, skip_D)
        return s4d_gpu.scan(*operands, gelu=gelu)
    wide = jnp.promote_types(u_BLD.dtype, jnp.float32)
    if initial_state_BDN is None:
        initial_state_BDN = jnp.zeros((u_BLD.shape[0], *c_DN.shape), c_DN.dtype)
    wide_BLD = u_BLD.astype(wide)
    operands = (resets_BL, initial_state_BDN)
    if chosen == "reference" or u_BLD.shape[1] == 1:
        x = {"u": wide_BLD, "step": jnp.ones(u_BLD.shape[:2], wide)}
        y_BLD, last_BDN = reference.scan(_S4D(log_decay_DN, c_DN), x, *operands)
    else:
        operands = (log_decay_DN, c_DN, *operands)
        y_BLD, last_BDN = s4d_xla.scan(wide_BLD, *operands, chunk_size=chunk_size)
    return time_invariant.finish(y_BLD, u_BLD, skip_D, gelu=gelu), last_BDN
