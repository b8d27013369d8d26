"""How a program of the selective scan lays channels, states and tokens out for matrix units.

A warp owns 8 channels, 4 lanes each; a lane holds N / 4 states of its channel. That is how the
matrix units lay out a product of [16, 8] over a warp: the row of a lane is its channel, of one
token, or of another in the lower 8 rows. So products replace sums over lanes and loads of B and C
token by token, and nothing moves between lanes for them. Of a round of 8 tokens, lane q of a
channel works out tokens q and 4 + q.

Layout of states: lane q has states 16 p + 4 q + 2 half + i; a product takes those of one p and
half, 8 of all lanes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.diagonal_scan.selective_lanes import Lanes
from hybrid_lm.kernels.diagonal_scan.selective_layout import PROGRAM_STATES, halves

ROUND = 8
"""Tokens of a round."""
TURNS = ROUND // 4
"""Tokens of a lane."""
CHANNELS = 8
"""Channels of a warp."""
_WARPS = 8  # of a program
_LANES = 4  # of a channel


def on_matrix_units(b: jax.Array, c: jax.Array) -> bool:
    """Whether products hold such ``b`` and ``c`` [B, L, N] as they are, and fill up with N.

    With more states the compiler did not come to an end in two minutes.
    """
    return b.dtype == c.dtype == jnp.bfloat16 and b.shape[-1] == 16


def warps(inner: int) -> int:
    """Warps of a program, over E = ``inner`` channels: rows of the cache are 64 bfloat16."""
    return math.gcd(_WARPS, inner // CHANNELS)


def fragments(b: jax.Array, c: jax.Array) -> jax.Array:
    """bfloat16 ``b`` and ``c`` [B, L, N] as `Fragments.shared` reads them.

    [B, L / ROUND, 32 * N / 4] words of two: per lane N / 8 of c, then as many of b.
    """
    batch, length, states = b.shape
    shape = (batch, length // ROUND, TURNS, _LANES, states // 16, _LANES, 2, 2)
    c, b = c.reshape(shape), b.reshape(shape)
    # [.., turn, q of the token, p, q, half, i]. Of c, a lane has both i of token and q ..
    c = c.transpose(0, 1, 3, 2, 5, 4, 6, 7)
    # .. and of b both tokens of its q, of the state that its row's number says.
    b = b.transpose(0, 1, 5, 7, 3, 4, 6, 2)
    words = [x.reshape(batch, shape[1], 32, states // 8, 2) for x in (c, b)]
    joined = jax.lax.bitcast_convert_type(jnp.concatenate(words, 3), jnp.int32)
    return joined.reshape(batch, shape[1], -1)


class Fragments(Lanes):
    """Lanes [warps, 8, 4] of a program; lists of states are in the order p, half, i."""

    def __init__(
        self, row: jax.Array, block: jax.Array, *, states: int, inner: int, interpret: bool
    ):
        shape = warps(inner), CHANNELS, _LANES
        channels = shape[0] * CHANNELS
        super().__init__(row, block, shape=shape, channels=channels, interpret=interpret)
        self.states, self.runs = states, states // 8
        # Triton would give neighbouring channels to neighbouring lanes, and shuffle afterwards.
        channel = self.block * self.block_channels + self._iota(0) * CHANNELS + self._iota(1)
        self._channel = channel if interpret else pallas_triton.opaque(channel)

    def zero(self) -> jax.Array:
        return jnp.zeros(self.shape, jnp.float32)

    def _state(self, number: int) -> jax.Array:
        return number // 4 * 16 + self._iota(2) * 4 + number % 4

    def get(self, ref, *at) -> list[jax.Array]:
        """Each lane's states of ``ref[*at]`` [N, E]."""
        return [ref[(*at, self._state(n), self._channel)] for n in range(self.states // _LANES)]

    def put(self, ref, values: list[jax.Array], *at) -> None:
        for number, value in enumerate(values):
            ref[(*at, self._state(number), self._channel)] = value

    def save(self, ref, values: list[jax.Array], at) -> None:
        """To ``ref[row, at]`` [any, PROGRAM_STATES]: of each channel its states."""
        warp = self.block * self.shape[0] + self._iota(0, 4)
        in_row = PROGRAM_STATES // (CHANNELS * self.states)
        channel = warp % in_row * CHANNELS + self._iota(1, 4)
        place = channel * self.states + self._iota(2, 4) * 4 + self._iota(3, 4)
        for first in range(0, len(values), 4):
            joined = pallas_triton.join(values[first : first + 4]).reshape(*self.shape, 4)
            ref[self.row, at, warp // in_row, place + 4 * first] = joined

    def of_channel(self, ref) -> Any:
        """Each lane's value of ``ref`` [E]; None if there is none."""
        return None if ref is None else ref[self._channel]

    def load(self, ref, t) -> list[Any]:
        """``ref`` [B, L, E] at a lane's tokens of the round from t, in float32."""
        if ref is None:
            return [None] * TURNS
        return [ref[place].astype(jnp.float32) for place in self._tokens(t)]

    def put_tokens(self, ref, values: list[jax.Array], t) -> None:
        """Writes `load`'s tokens to ``ref`` [B, L, E]."""
        for place, value in zip(self._tokens(t), values, strict=True):
            ref[place] = value.astype(ref.dtype)

    def _tokens(self, t) -> list[tuple]:
        rows = [t + _LANES * turn + self._iota(2) for turn in range(TURNS)]
        return [(self.row, row, self._channel) for row in rows]

    def shared(self, ref, i) -> tuple[list[list[jax.Array]], list[list[jax.Array]]]:
        """B and C of round i from ``ref`` as of `fragments`: per 8 states, `write`'s and `read`'s.

        Of b a word of two copies for each of a lane's tokens; of c two numbers in float32.
        """
        count = 2 * self.runs
        lane = self._iota(1, count) * _LANES + self._iota(2, count)
        parts = jax.lax.split(ref[self.row, i, lane * count + self._iota(3, count)], [1] * count, 3)
        words = [part.reshape(self.shape) for part in parts]
        c = [list(halves(word)) for word in words[: self.runs]]
        b = [_copies(word) for word in words[self.runs :]]
        return b, c

    def of(self, x: jax.Array, q: int) -> jax.Array:
        """The value of lane q in all lanes of the channel."""
        if self.interpret:
            return jnp.broadcast_to(x[:, :, q : q + 1], self.shape)
        return pallas_triton.from_lane(x, self._iota(1) * _LANES + q)

    def sum_of_lanes(self, x: jax.Array) -> jax.Array:
        """Sum over the lanes of a channel, in all of them."""
        return sum((self.of(x, q) for q in range(1, _LANES)), self.of(x, 0))

    def split(self, x: jax.Array) -> jax.Array:
        """Float32 ``x`` as a word of two bfloat16, whose sum is ``x`` to 2^-17 of it."""
        high = x.astype(jnp.bfloat16).astype(jnp.float32)
        if self.interpret:
            return _word(high, x - high)
        return pallas_triton.pair_of_bfloat16(high, x - high)

    def write(self, w: jax.Array, b: jax.Array, q: int) -> list[list[jax.Array]]:
        """``w b`` of lanes q and q + 1, two tokens, for 8 states: per token, each lane's two.

        ``w`` as of `split`, ``b`` two copies in a word. Products and sums are exact to float32.
        """
        w_of = [jnp.where(self._iota(2) == lane, w, 0) for lane in (q, q + 1)]
        if not self.interpret:
            d = pallas_triton.warp_product_bfloat16(w_of, b)
            return [d[:2], d[2:]]
        rows = jnp.concatenate([_flat(x) for x in w_of], 1)
        return self._by_lane(jnp.einsum("wmk,wnk->wmn", rows, _flat(b), precision="highest"))

    def read(self, h: list[list[jax.Array]], c: list[jax.Array], q: int, sums):
        """Adds ``sum_n h_n c_n`` of 8 states to ``sums``, a value per token of lane q.

        ``h``: of its two tokens, each lane's two states. Products of TF32, sums in float32.
        """
        c = [jnp.where(self._iota(1) // 2 == q, x, 0.0) for x in c]
        if not self.interpret:
            return pallas_triton.warp_product_tf32([h[0][0], h[1][0], h[0][1], h[1][1]], c, sums)
        rows = jnp.concatenate([jnp.concatenate(x, -1) for x in h], 1)
        d = jnp.einsum("wmk,wnk->wmn", rows, jnp.concatenate(c, -1), precision="highest")
        added = [x for token in self._by_lane(d) for x in token]
        return [x + y for x, y in zip(sums, added, strict=True)]

    def _by_lane(self, d: jax.Array) -> list[list[jax.Array]]:
        d = d.reshape(self.shape[0], 2, CHANNELS, _LANES, 2)
        return [[d[:, token, :, :, i] for i in range(2)] for token in range(2)]


def _copies(word: jax.Array) -> list[jax.Array]:
    """Each half of ``word`` twice."""
    low, high = word & jnp.int32(0xFFFF), word & jnp.int32(-65536)
    return [low | (low << 16), high | jax.lax.shift_right_logical(high, jnp.int32(16))]


def _flat(word: jax.Array) -> jax.Array:
    """The two bfloat16 of words [.., 4], [.., 8]."""
    return jnp.stack(halves(word), -1).reshape(*word.shape[:-1], -1)


def _word(low: jax.Array, high: jax.Array) -> jax.Array:
    both = jnp.stack([low, high], -1).astype(jnp.bfloat16)
    return jax.lax.bitcast_convert_type(both, jnp.int32)
