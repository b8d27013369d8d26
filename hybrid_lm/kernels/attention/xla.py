"""Attention in blocks with an online softmax: O(L) memory, unseen blocks skipped.

FlashAttention (Dao et al. 2022, arXiv 2205.14135) and its backward pass in plain XLA loops.
"""

from functools import partial

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32

_LOW = -1e30  # below any score, and finite so that the maximum of an empty block is harmless


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGP: jax.Array,
    first_BL: jax.Array,
    last_BL: jax.Array,
    chunk_size: int,
) -> jax.Array:
    """Query i sees keys ``first_BL[:, i] .. last_BL[:, i]`` -> y_BLHP."""
    return _forward(q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL, chunk_size)[0]


class _Blocks:
    """The padded operands cut in blocks of ``size`` positions; heads grouped as [G, R]."""

    def __init__(self, q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL, chunk_size):
        self.batch, self.length, self.heads, _ = q_BLHK.shape
        self.keys, self.kv_heads = k_BSGK.shape[1:3]
        self.size = min(chunk_size, max(self.length, 1))
        self.k_size = min(chunk_size, self.keys)
        self.scale = 1.0 / q_BLHK.shape[-1] ** 0.5
        # A padded query sees one padded (zero) key, so that its softmax is not empty.
        beyond = -self.length % self.size
        own_L = jnp.arange(self.keys, self.keys + beyond, dtype=jnp.int32)
        own_BL = jnp.broadcast_to(own_L, (self.batch, beyond))
        self.first_nBC = self.cut(jnp.concatenate([first_BL, own_BL], axis=1), self.size)
        self.last_nBC = self.cut(jnp.concatenate([last_BL, own_BL], axis=1), self.size)
        self.q_nBCGRK = self.cut(self.group(self.pad(q_BLHK, self.size)), self.size)
        extent = self.keys + beyond
        self.k_nBCGK = self.cut(self.pad(k_BSGK, self.k_size, extent), self.k_size)
        self.v_nBCGP = self.cut(self.pad(v_BSGP, self.k_size, extent), self.k_size)

    @staticmethod
    def pad(x, size, extent=0):
        extent = max(extent, x.shape[1])
        extent += -extent % size
        return jnp.pad(x, [(0, 0), (0, extent - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

    @staticmethod
    def cut(x, size):
        blocks = x.reshape(x.shape[0], x.shape[1] // size, size, *x.shape[2:])
        return jnp.moveaxis(blocks, 1, 0)

    def group(self, x_BLHK):
        return x_BLHK.reshape(*x_BLHK.shape[:2], self.kv_heads, -1, x_BLHK.shape[-1])

    @staticmethod
    def join(x_nBC, length):
        x = jnp.moveaxis(x_nBC, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]

    def span(self, first_BC, last_BC):
        """Key blocks [lo, hi) that some query of a block sees."""
        return jnp.min(first_BC) // self.k_size, jnp.max(last_BC) // self.k_size + 1

    def scores(self, j, q_BCGRK, first_BC, last_BC):
        """Scaled scores [B, G, R, query, key] of a query block on key block j, and who is seen."""
        key_C = j * self.k_size + jnp.arange(self.k_size)
        seen = (key_C >= first_BC[..., None]) & (key_C <= last_BC[..., None])
        scores = einsum_f32("bqgrk,bsgk->bgrqs", q_BCGRK, self.k_nBCGK[j]) * self.scale
        # XLA may compute them anew, and round them differently, for each of their uses: large
        # scores would then lie far from their own maximum.
        return jax.lax.optimization_barrier(scores), seen[:, None, None]


def _forward(q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL, chunk_size):
    blocks = _Blocks(q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL, chunk_size)

    def query_block(args):
        q_BCGRK, *seen_BC = args

        def key_block(j, carry):
            top, total, sum_ = carry
            scores, seen = blocks.scores(j, q_BCGRK, *seen_BC)
            top_new = jnp.maximum(top, jnp.max(jnp.where(seen, scores, _LOW), axis=-1))
            weights = jnp.where(seen, jnp.exp(scores - top_new[..., None]), 0.0)
            keep = jnp.exp(top - top_new)
            v_BCGP = blocks.v_nBCGP[j]
            part = einsum_f32("bgrqs,bsgp->bgrqp", weights.astype(v_BCGP.dtype), v_BCGP)
            return top_new, total * keep + weights.sum(-1), sum_ * keep[..., None] + part

        shape = (blocks.batch, *q_BCGRK.shape[2:4], blocks.size)
        dtype = jnp.promote_types(q_BCGRK.dtype, jnp.float32)
        zero = jnp.zeros(shape, dtype)
        low = jnp.full(shape, _LOW, dtype)
        empty = (low, zero, jnp.zeros((*shape, v_BSGP.shape[-1]), dtype))
        top, total, sum_ = jax.lax.fori_loop(*blocks.span(*seen_BC), key_block, empty)
        return jnp.moveaxis(sum_ / total[..., None], 3, 1), top + jnp.log(total)

    operands = (blocks.q_nBCGRK, blocks.first_nBC, blocks.last_nBC)
    y_nBCGRP, lse_n = jax.lax.map(query_block, operands)
    y_BLHP = blocks.join(y_nBCGRP, blocks.length).reshape(*q_BLHK.shape[:3], -1)
    # The backward pass subtracts what it gets from y: rounding it first would double the error.
    return y_BLHP.astype(q_BLHK.dtype), (q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL, y_BLHP, lse_n)


def _backward(chunk_size, saved, dy_BLHP):
    q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL, y_BLHP, lse_n = saved
    blocks = _Blocks(q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL, chunk_size)
    split = partial(blocks.cut, size=blocks.size)
    dy_nBCGRP = split(blocks.group(blocks.pad(dy_BLHP, blocks.size)))
    delta_BLH = einsum_f32("blhp,blhp->blh", dy_BLHP, y_BLHP)[..., None]
    delta_nBCGR = split(blocks.group(blocks.pad(delta_BLH, blocks.size)))[..., 0]
    wide = jnp.promote_types(q_BLHK.dtype, jnp.float32)

    def query_block(carry, args):
        q_BCGRK, first_BC, last_BC, dy_BCGRP, delta_BCGR, lse = args
        seen_BC = first_BC, last_BC
        delta = jnp.moveaxis(delta_BCGR, 1, 3)

        def key_block(j, carry):
            dq, dk_nBCGK, dv_nBCGP = carry
            scores, seen = blocks.scores(j, q_BCGRK, *seen_BC)
            # The difference is above 0 only by the rounding of large scores.
            weights = jnp.exp(jnp.minimum(scores - lse[..., None], 0.0))
            weights = jnp.where(seen, weights, 0.0)
            dweights = einsum_f32("bqgrp,bsgp->bgrqs", dy_BCGRP, blocks.v_nBCGP[j])
            dscores = weights * (dweights - delta[..., None]) * blocks.scale
            dscores = dscores.astype(q_BLHK.dtype)
            weights = weights.astype(q_BLHK.dtype)
            dq += einsum_f32("bgrqs,bsgk->bqgrk", dscores, blocks.k_nBCGK[j])
            dk_nBCGK = dk_nBCGK.at[j].add(einsum_f32("bgrqs,bqgrk->bsgk", dscores, q_BCGRK))
            dv_nBCGP = dv_nBCGP.at[j].add(einsum_f32("bgrqs,bqgrp->bsgp", weights, dy_BCGRP))
            return dq, dk_nBCGK, dv_nBCGP

        dq, dk, dv = jax.lax.fori_loop(
            *blocks.span(*seen_BC), key_block, (jnp.zeros(q_BCGRK.shape, wide), *carry)
        )
        return (dk, dv), dq.astype(q_BLHK.dtype)

    zeros = (jnp.zeros(blocks.k_nBCGK.shape, wide), jnp.zeros(blocks.v_nBCGP.shape, wide))
    seen_nBC = blocks.first_nBC, blocks.last_nBC
    operands = (blocks.q_nBCGRK, *seen_nBC, dy_nBCGRP, delta_nBCGR, lse_n)
    (dk_n, dv_n), dq_n = jax.lax.scan(query_block, zeros, operands)
    dq_BLHK = blocks.join(dq_n, blocks.length).reshape(q_BLHK.shape)
    dk_BSGK = blocks.join(dk_n, blocks.keys).astype(k_BSGK.dtype)
    dv_BSGP = blocks.join(dv_n, blocks.keys).astype(v_BSGP.dtype)
    return dq_BLHK, dk_BSGK, dv_BSGP, None, None


attention.defvjp(_forward, _backward)
