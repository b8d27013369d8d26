"""What the kernels do with tiles: states, parts of [M, P], and tokens [M, C]."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels.pallas_triton import dot, round_to_tf32


def load_parts(ref, *at):
    """The parts of ``ref[*at]``, its next dimension."""
    return tuple(ref[(*at, part)] for part in range(ref.shape[len(at)]))


def load_across(ref, channel, diagonal):
    """The diagonal in two parts [1, P], or the matrix."""
    if diagonal:
        return tuple(ref[channel, part][None, :] for part in range(2))
    return (ref[channel],)


def product(a, b, tf32):
    """Of float32 matrices; ``tf32``: of 11 bits of their entries."""
    return dot(round_to_tf32(a), round_to_tf32(b), tf32=True) if tf32 else dot(a, b)


def multiply(h, across, tf32):
    """``h across``, of states or of another ``across``."""
    if len(across) == 1:
        return (product(h[0], across[0], tf32),)
    real, imaginary = across
    return h[0] * real - h[1] * imaginary, h[0] * imaginary + h[1] * real


def power(across, exponent, tf32):
    """``across`` over several chunks."""
    if len(across) == 2:
        result = jnp.ones_like(across[0]), jnp.zeros_like(across[1])
    else:
        place_P = jnp.arange(across[0].shape[0])
        result = ((place_P[:, None] == place_P[None, :]).astype(jnp.float32),)

    def digit(i, carry):
        result, across = carry
        is_one = (exponent & (1 << i)) != 0
        product = multiply(result, across, tf32)
        result = tuple(jnp.where(is_one, p, r) for p, r in zip(product, result, strict=True))
        return result, multiply(across, across, tf32)

    return jax.lax.fori_loop(0, exponent.bit_length(), digit, (result, across))[0]


def load_runs(refs, rows, start, chunk):
    """Numbers of the documents of the tokens [M, C], and of the last one [M]; None: one only."""
    if not refs:
        return None
    (run,) = refs
    last_M = run[rows, start + chunk - 1].astype(jnp.int32)
    return run[rows, pl.ds(start, chunk)].astype(jnp.int32), last_M


def of_ends(runs, *, reverse):
    """Tokens that write the state after the chunk, and that read the one before."""
    run_MC, last_M = runs
    last_MC, first_MC = run_MC == last_M[:, None], run_MC == 0
    return (first_MC, last_MC) if reverse else (last_MC, first_MC)


def by_run(runs, add):
    """Sum of ``add(tokens_MC)`` over the documents of a chunk."""
    run_MC, last_M = runs
    last_MC = last_M[:, None]
    sum_ = add(run_MC == 0) + add((run_MC == last_MC) & (last_MC > 0))

    def between(r, sum_):
        return sum_ + add((run_MC == r) & (last_MC > r))

    return jax.lax.fori_loop(1, jnp.max(last_M), between, sum_)
