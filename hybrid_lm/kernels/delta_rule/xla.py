"""Chunked form: what a chunk does to the state is one matrix, found by the UT transform.

Sections 3.2 and 3.3 of Yang et al. 2024 (arXiv 2406.06484), with the decays of arXiv 2412.06464,
section 3.3. Inside a chunk that starts from S, with d_ij the decay from token j to i and d_i the
one from before the chunk, the writes u_i = b_i (v_i - what the state has for k_i) solve

    (I + N) u = b v - (b d k) S,    N_ij = b_i d_ij (k_i . k_j) for j < i,

so all of a chunk but S is known beforehand: the state after it is ``M S + V``. The maps (M, V) of
all chunks are composed in two levels, ~sqrt(chunks) spans side by side and then span by span.
Memory is O(L (C + (K + P) (1 + K / C))) per head.
"""

import math

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.decay import sum_decays
from hybrid_lm.kernels.delta_rule import reference
from hybrid_lm.kernels.precision import einsum_f32


def delta_rule(
    q_BLHK, k_BLHK, v_BLHP, beta_BLH, log_decay_BLH, resets_BL, initial_state_BHKP, *, chunk_size
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.delta_rule.delta_rule`."""
    batch, length, heads, value_dim = v_BLHP.shape
    if length == 1:
        operands = (q_BLHK, k_BLHK, v_BLHP, beta_BLH, log_decay_BLH, resets_BL)
        return reference.delta_rule(*operands, initial_state_BHKP)
    key_dim, wide = k_BLHK.shape[-1], initial_state_BHKP.dtype
    size = min(chunk_size, length)
    chunks = -(-length // size)
    span = math.isqrt(chunks - 1) + 1
    # Half-precision inputs are worth TF32 products, no less: maps are composed many times over.
    exact = v_BLHP.dtype == wide
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.HIGH

    def product(spec, *operands):
        return jnp.einsum(spec, *operands, precision=precision)

    def cut(x):
        """[B, L, ...] -> [B, chunks, C, ...]; a padded token writes nothing and keeps the state."""
        x = jnp.pad(x, [(0, 0), (0, -length % (size * span))] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, size, *x.shape[2:])

    # [B, H, chunks, C, ...] from here on; n: chunk, i/j: query/key place in it.
    operands = (q_BLHK, k_BLHK, v_BLHP, beta_BLH.astype(wide)[..., None])
    q, k, v, beta = (jnp.moveaxis(cut(x), 3, 1) for x in operands)
    resets = None if resets_BL is None else cut(resets_BL)
    if log_decay_BLH is None:
        total = jnp.zeros((batch, 1, *k.shape[2:4]), wide)
    else:
        total = jnp.moveaxis(sum_decays(cut(log_decay_BLH.astype(wide)), resets), 3, 1)
    runs = jnp.zeros((batch, 1, *k.shape[2:4]), jnp.int32)
    if resets is not None:
        runs = jnp.cumsum(resets, axis=2)[:, None]  # starts of documents in the chunk so far
    last_run = runs[..., -1:]

    # The mask comes before exp: no overflow, no 0 * inf.
    place = jnp.arange(size)
    seen = (place[:, None] >= place) & (runs[..., :, None] == runs[..., None, :])
    gap = total[..., :, None] - total[..., None, :]
    gap = jnp.where(gap > 0, 0.0, gap)  # above 0 only by rounding
    decay = jnp.exp(jnp.where(seen, gap, -jnp.inf))
    from_start = jnp.exp(jnp.where(runs == 0, total, -jnp.inf))[..., None]
    to_end = jnp.exp(jnp.where(runs == last_run, total[..., -1:] - total, -jnp.inf))[..., None]
    stays = jnp.where(last_run == 0, jnp.exp(total[..., -1:]), 0.0)[..., None]

    # Inside a chunk: writes are ``u - w S`` with [w, u] the solution for [b d k, b v].
    earlier = jnp.where(place[:, None] > place, decay, 0.0)
    inverse = _inverse(beta * earlier * einsum_f32("bhnik,bhnjk->bhnij", k, k))
    wu = product("bhnij,bhnjx->bhnix", inverse, beta * jnp.concatenate([from_start * k, v], -1))
    w, u = wu[..., :key_dim], wu[..., key_dim:]
    maps = product("bhnjk,bhnjx->bhnkx", to_end * k, wu)
    m = stays * jnp.eye(key_dim, dtype=wide) - maps[..., :key_dim]
    maps = jnp.concatenate([m, maps[..., key_dim:]], -1)

    before, final = _states(maps, initial_state_BHKP, span, product)
    u -= product("bhnik,bhnkp->bhnip", w, before)
    y = product("bhnik,bhnkp->bhnip", from_start * q, before)
    y += product("bhnij,bhnjp->bhnip", decay * einsum_f32("bhnik,bhnjk->bhnij", q, k), u)
    y_BLHP = jnp.moveaxis(y, 1, 3).reshape(batch, -1, heads, value_dim)[:, :length]
    return y_BLHP, final


def _states(maps, initial_state_BHKP, span, product):
    """State before each chunk and after the last, for maps [M, V] of the chunks."""
    batch, heads, chunks, key_dim, _ = maps.shape
    spans = jnp.moveaxis(maps.reshape(batch, heads, -1, span, *maps.shape[3:]), 3, 0)
    nothing = jnp.eye(*maps.shape[3:], dtype=maps.dtype)

    def compose(first, map_):
        whole = product("bhgkl,bhglx->bhgkx", map_[..., :key_dim], first)
        return whole.at[..., key_dim:].add(map_[..., key_dim:]), first

    def pass_span(state, map_):
        after = product("bhkl,bhlp->bhkp", map_[..., :key_dim], state)
        return after + map_[..., key_dim:], state

    whole, first = jax.lax.scan(compose, jnp.broadcast_to(nothing, spans.shape[1:]), spans)
    final, at_span = jax.lax.scan(pass_span, initial_state_BHKP, jnp.moveaxis(whole, 2, 0))
    before = product("sbhgkl,gbhlp->bhgskp", first[..., :key_dim], at_span)
    before += jnp.moveaxis(first[..., key_dim:], 0, 3)
    return before.reshape(batch, heads, chunks, key_dim, -1), final


@jax.custom_vjp
def _inverse(n):
    """``(I + n)^-1`` of strictly lower triangular matrices [..., C, C], in full precision.

    Blocks of doubling size are inverted by ``[[a, 0], [c, b]]^-1 = [[A, 0], [-B c A, B]]``, which
    is as stable as substitution (a series in powers of n is not) and made of matrix products.
    """
    place = jnp.arange(n.shape[-1])

    def double(carry):
        level, inverse = carry
        block = place >> level
        corner = (block[:, None] == block + 1) & (block[:, None] % 2 == 1)
        update = einsum_f32("...ij,...jk->...ik", jnp.where(corner, n, 0.0), inverse)
        return level + 1, inverse - einsum_f32("...ij,...jk->...ik", inverse, update)

    # Not a fori_loop: a scan over layers would save the corners of all levels, as wide as n.
    levels = (n.shape[-1] - 1).bit_length()
    start = jnp.broadcast_to(jnp.eye(n.shape[-1], dtype=n.dtype), n.shape)
    return jax.lax.while_loop(lambda carry: carry[0] < levels, double, (0, start))[1]


def _inverse_forward(n):
    inverse = _inverse(n)
    return inverse, inverse


def _inverse_backward(inverse, cotangent):
    update = einsum_f32("...ji,...jk->...ik", inverse, cotangent)
    return (-einsum_f32("...ij,...kj->...ik", update, inverse),)


_inverse.defvjp(_inverse_forward, _inverse_backward)
