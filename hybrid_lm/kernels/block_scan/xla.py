"""Associative scans over the chunks."""

import jax
import jax.numpy as jnp

LOW = -1e30  # a score below any other, and finite so that nothing is ever divided by 0


def carry(keeps, written, start) -> jax.Array:
    """See `hybrid_lm.kernels.block_scan.carry`."""

    def combine(left, right):
        kept = jnp.where(_like(right[0], right[1]), left[1], 0)
        return left[0] & right[0], kept + right[1]

    keeps = jnp.concatenate([jnp.ones_like(keeps[:, :1]), keeps], axis=1)
    written = jnp.concatenate([start[:, None], written], axis=1)
    return jax.lax.associative_scan(combine, (keeps, written), axis=1)[1]


def merge(keeps, log_mass, values, start_log_mass, start_values) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.block_scan.merge`."""

    def combine(left, right):
        both = jnp.stack([jnp.where(_like(right[0], left[1]), left[1], LOW), right[1]])
        some = both > LOW / 2
        log_mass = jnp.where(some.any(0), jnp.logaddexp(*both), LOW)
        shares = jnp.where(some, jnp.exp(both - log_mass), 0)[..., None]
        return left[0] & right[0], log_mass, shares[0] * left[2] + shares[1] * right[2]

    keeps = jnp.concatenate([jnp.ones_like(keeps[:, :1]), keeps], axis=1)
    log_mass = jnp.concatenate([start_log_mass[:, None], log_mass], axis=1)
    values = jnp.concatenate([start_values[:, None], values], axis=1)
    return jax.lax.associative_scan(combine, (keeps, log_mass, values), axis=1)[1:]


def _like(mask, x):
    return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
