"""Sizes of a program of the selective scan on the GPU, and how b and c are laid out for it."""

import jax
import jax.numpy as jnp

PROGRAM_STATES = 512
"""States of all channels of a program."""


def channels(states: int) -> int:
    """Channels of a program."""
    return PROGRAM_STATES // states


def warps(held: int) -> int:
    """Warps of a program whose lanes hold ``held`` states, of all their channels."""
    return PROGRAM_STATES // (32 * held)


def turns(states: int, held: int) -> int:
    """In how many orders the lanes of a turned tile hold their states."""
    return min(held, 32 * held // states)


def turn(x: jax.Array, held: int) -> jax.Array:
    """``x`` [..., N] as `Tile.shared` of a turned tile reads it, [..., turns * N]."""
    states = jnp.arange(x.shape[-1])
    return jnp.concatenate([x[..., states ^ k] for k in range(turns(x.shape[-1], held))], -1)


def side_by_side(b: jax.Array, c: jax.Array, held: int) -> jax.Array:
    """``b`` and ``c`` [..., N] as `Tile.shared` reads them: ``held`` of one, as many of the other.

    In bfloat16 two are in a word: half the loads.
    """
    runs = [x.reshape(*x.shape[:-1], -1, held) for x in (b, c)]
    joined = jnp.concatenate(runs, -1).reshape(*b.shape[:-1], -1)
    if joined.dtype != jnp.bfloat16:
        return joined.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(joined.reshape(*b.shape[:-1], -1, 2), jnp.int32)


def halves(word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two bfloat16 of a word, in float32."""

    def float32(half):
        return jax.lax.bitcast_convert_type(half, jnp.float32)

    low, high = word << 16, word & jnp.int32(-65536)
    return float32(low), float32(high)
