"""Chunked form of S4D: a short convolution inside a chunk, matrix products to and from its state.

The decay is the same at every token, so that inside a chunk of C tokens the recurrence is one
[C, C] Toeplitz matrix per channel, and its state is a product with powers of the decay. Only the
states between chunks are scanned. Memory is O(L (1 + N / C)) per channel.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.kernels.toeplitz import lower_toeplitz, product_by_run


def scan(
    u_BLD: jax.Array,
    log_decay_DN: jax.Array,
    c_DN: jax.Array,
    resets_BL: jax.Array | None,
    initial_state_BDN: jax.Array,
    *,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.diagonal_scan.s4d.s4d_scan`."""
    batch, length, _ = u_BLD.shape
    size = min(chunk_size, length)

    def cut(x):
        """[B, L, ...] -> [B, chunks, C, ...], zeros at the end."""
        x = jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, size, *x.shape[2:])

    # m: chunk, i/j: token of output and input in it, d: channel, n: state
    u = cut(u_BLD)
    runs = jnp.zeros(u.shape[:3], jnp.int32)  # starts of documents in the chunk so far
    if resets_BL is not None:
        runs = jnp.cumsum(cut(resets_BL), axis=2)
    power = jnp.arange(size + 1, dtype=u.dtype)[:, None, None]
    decay_iDN = jnp.exp(power * log_decay_DN)  # over i tokens

    kernel_iD = 2 * jnp.sum(c_DN * decay_iDN[:-1], axis=-1).real
    y = product_by_run(lower_toeplitz(kernel_iD), u, runs)

    # The state that each chunk leaves: what its last document writes, and how much of the past.
    def written(u_BmjD, runs_Bmj, tokens):
        """State after the first ``tokens`` of a chunk that starts from zero."""
        in_last = (runs_Bmj == runs_Bmj[:, :, tokens - 1, None])[:, :, :tokens, None]
        u_BmjD = jnp.where(in_last, u_BmjD[:, :, :tokens], 0.0)
        decay_jDN = decay_iDN[tokens - 1 - jnp.arange(tokens)]
        parts = [einsum_f32("bmjd,jdn->bmdn", u_BmjD, p) for p in _parts(decay_jDN)]
        return jax.lax.complex(*parts)

    def stays(runs_Bmj, tokens):
        """Decay of an earlier state over the first ``tokens`` of a chunk."""
        none = (runs_Bmj[:, :, tokens - 1] == 0)[..., None, None]
        return jnp.where(none, decay_iDN[tokens], 0.0)

    def combine(left, right):
        return left[0] * right[0], left[1] * right[0] + right[1]

    whole = (u[:, :-1], runs[:, :-1], size)
    first = initial_state_BDN[:, None]
    decays = jnp.concatenate([jnp.ones_like(first), stays(*whole[1:])], axis=1)
    states = jnp.concatenate([first, written(*whole)], axis=1)
    _, before = jax.lax.associative_scan(combine, (decays, states), axis=1)
    rest = (length - 1) % size + 1  # tokens of the last chunk
    last = (runs[:, -1:], rest)
    final_BDN = stays(*last)[:, 0] * before[:, -1] + written(u[:, -1:], *last)[:, 0]

    # What earlier chunks left reaches the tokens of the chunk's first document.
    (read_re, read_im), (before_re, before_im) = _parts(2 * c_DN * decay_iDN[1:]), _parts(before)
    y_before = einsum_f32("bmdn,idn->bmid", before_re, read_re)
    y_before -= einsum_f32("bmdn,idn->bmid", before_im, read_im)
    y += jnp.where((runs == 0)[..., None], y_before, 0.0)
    return y.reshape(batch, -1, y.shape[-1])[:, :length], final_BDN


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x.real, x.imag
