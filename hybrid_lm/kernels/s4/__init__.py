"""S4's state space: ``h' = A h + B u``, ``y = 2 Re(C h)``, A normal plus low rank, bilinear step.

``A = diag(a) - p p^*`` on vectors ``[h; conj h]``, of which only the first half is stored: N/2
conjugate pairs, the same at every token, one system per channel. Gu et al. 2022 (arXiv 2111.00396).
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.s4 import gpu, reference, xla
from hybrid_lm.kernels.s4.convolution import kernel, two_sided
from hybrid_lm.kernels.s4.system import System, discretise
from hybrid_lm.kernels.time_invariant import finish

__all__ = ["System", "discretise", "kernel", "s4", "two_sided"]


def s4(
    u_BLD: jax.Array,
    system: System,
    resets_BL: jax.Array | None = None,
    initial_state_BDN: jax.Array | None = None,
    *,
    skip_D: jax.Array | None = None,
    gelu: bool = False,
    chunk_size: int = 128,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the recurrence over L; ``skip u`` is added to the outputs.

    Args:
        u_BLD: inputs; computed in float32 (float64 if given).
        system: the discretised systems of the channels.
        resets_BL: True where the state is cleared before the token.
        initial_state_BDN: complex state before the first token; None is zero.
        skip_D: None is zero.
        gelu: give the GELU of y, in the dtype of u.
        chunk_size: tokens that one convolution handles in the XLA form.
        implementation: see `Implementation`.

    Returns:
        y_BLD (real, in at least float32 without GELU) and the complex state after the last token.
    """
    obstacles = {"pallas": gpu.obstacle(u_BLD, system), "xla": None, "reference": None}
    chosen = choose("s4", implementation, obstacles)
    if chosen == "pallas":
        return gpu.s4(u_BLD, system, resets_BL, initial_state_BDN, skip_D, gelu=gelu)
    if initial_state_BDN is None:
        initial_state_BDN = jnp.zeros((u_BLD.shape[0], *system.b_DN.shape), system.b_DN.dtype)
    wide_BLD = u_BLD.astype(initial_state_BDN.real.dtype)
    operands = (wide_BLD, system, resets_BL, initial_state_BDN)
    if chosen == "reference":
        y_BLD, last_BDN = reference.s4(*operands)
    else:
        y_BLD, last_BDN = xla.s4(*operands, chunk_size=chunk_size)
    return finish(y_BLD, u_BLD, skip_D, gelu=gelu), last_BDN
