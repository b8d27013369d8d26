"""How a program of the selective scan lays channels, states and tokens over its lanes.

A warp owns C channels, or C pairs of neighbours, with S lanes each, 32 lanes in all; a lane holds
N / S states of each of its channels in registers. What depends on the token and the channel alone
is worked out for several tokens at once, a token a lane, and handed to the channel's lanes token by
token (`Tile.of`); sums over lanes are shared out in the same way (`Tile.fold`), so that no lane
repeats another's work.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.diagonal_scan.selective_lanes import Lanes
from hybrid_lm.kernels.diagonal_scan.selective_layout import channels, halves, turns, warps


class Tile(Lanes):
    """Lanes [warps, S, C] of a program, over a row of the batch and a block of channels.

    Args:
        states: N.
        held: of them by a lane, of each of its channels.
        tokens: of a round of the walk; S of them, or all, are worked out at once.
        turned: whether neighbouring channels hold their states in different orders, the n-th in
            the place of number n XOR channel, so that `fold_states` sums over channels without a
            choice per lane.
        beside: neighbouring channels of a lane. Lists of states have those of the first channel,
            then those of the next.
    """

    def __init__(
        self,
        row: jax.Array,
        block: jax.Array,
        *,
        states: int,
        held: int,
        tokens: int,
        interpret: bool,
        turned: bool = False,
        beside: int = 1,
    ):
        self.held, self.states, self.slices = held, states, states // held
        self.tokens = min(self.slices, tokens)
        self._lanes_of_token = self.slices // self.tokens
        self.width = 32 // self.slices
        shape = (warps(held * beside), self.slices, self.width)
        super().__init__(row, block, shape=shape, channels=channels(states), interpret=interpret)
        self.slice = self._iota(1)
        self.beside = beside
        self.channels = [self._first_channel() + number for number in range(beside)]
        self.turns = turns(states, held) if turned else 1

    def _first_channel(self, *inner: int) -> jax.Array:
        channels = (self.block * self.shape[0] + self._iota(0, *inner)) * self.width
        return (channels + self._iota(2, *inner)) * self.beside

    def zeros(self) -> list[jax.Array]:
        return [jnp.zeros(self.shape, jnp.float32)] * (self.beside * self.held)

    def _state(self, n: int) -> jax.Array:
        """Number of each lane's n-th state."""
        n_turned = n ^ self._iota(2) % self.turns if self.turns > 1 else n
        return self.slice * self.held + n_turned

    def _places(self) -> list[tuple[jax.Array, jax.Array]]:
        """State and channel of each of a lane's values."""
        states = [self._state(n) for n in range(self.held)]
        return [(state, channel) for channel in self.channels for state in states]

    def get(self, ref, *at) -> list[jax.Array]:
        """Each lane's states of ``ref[*at]`` [N, E]."""
        return [ref[(*at, *place)] for place in self._places()]

    def put(self, ref, values: list[jax.Array], *at) -> None:
        for place, value in zip(self._places(), values, strict=True):
            ref[(*at, *place)] = value

    def save(self, ref, values: list[jax.Array], at) -> None:
        """The program's ``ref[row, at, block]`` [PROGRAM_STATES]: of each channel its states."""
        for number in range(self.beside):
            own = values[number * self.held : (number + 1) * self.held]
            joined = pallas_triton.join(own).reshape(*self.shape, self.held)
            channel = self._first_channel(self.held) + number - self.block * channels(self.states)
            state = self._iota(1, self.held) * self.held + self._iota(3, self.held)
            ref[self.row, at, self.block, channel * self.states + state] = joined

    def saved(self, ref, at) -> list[jax.Array]:
        """Each lane's states of what was saved."""
        first = self.block * channels(self.states)
        return [
            ref[self.row, at, self.block, (channel - first) * self.states + state]
            for state, channel in self._places()
        ]

    def of_channel(self, ref) -> list[Any]:
        """Each lane's values of ``ref`` [E], one a channel; None if there is none."""
        return [None if ref is None else ref[channel] for channel in self.channels]

    def shared(self, ref, t) -> tuple[list[jax.Array], list[jax.Array]]:
        """Each lane's states of b and c, the same for all channels.

        ``ref[row, t]`` is as of `side_by_side`, of [turns * N] each.
        """
        packed = ref.dtype == jnp.int32
        words = self.held if packed else 2 * self.held
        at = self._iota(2, words) % self.turns * self.slices + self._iota(1, words)
        parts = jax.lax.split(ref[self.row, t, at * words + self._iota(3, words)], [1] * words, 3)
        values = [part.reshape(self.shape) for part in parts]
        if packed:
            values = [half for word in values for half in halves(word)]
        return values[: self.held], values[self.held :]

    def _tokens(self, t) -> tuple:
        """Index of the tokens from t in [B, L, E], a token a lane, [warps, S, C, channels]."""
        channel = self._first_channel(self.beside) + self._iota(3, self.beside)
        return self.row, t + self._iota(1, self.beside) // self._lanes_of_token, channel

    def load(self, refs, t, count: int) -> list[list[tuple]]:
        """``refs`` [B, L, E] at tokens t .. t + count - 1, a token a lane.

        Per group of tokens that fill the lanes and channel of a lane, a value of each of ``refs``.
        """

        def parts(ref, t):
            if ref is None:
                return [None] * self.beside
            parts = jax.lax.split(ref[self._tokens(t)], [1] * self.beside, axis=3)
            return [part.reshape(self.shape) for part in parts]

        starts = range(0, count, self.tokens)
        return [list(zip(*[parts(ref, t + k) for ref in refs], strict=True)) for k in starts]

    def put_tokens(self, ref, values: list[jax.Array], t) -> None:
        """Writes the tokens from t to ``ref`` [B, L, E], laid out as in `load`."""
        joined = pallas_triton.join(values).reshape(*self.shape, self.beside)
        ref[self._tokens(t)] = joined.astype(ref.dtype)

    def of(self, x: jax.Array, k: int) -> jax.Array:
        """The value of the k-th token in all lanes of the channel."""
        if self.slices == 1:
            return x
        source = k * self._lanes_of_token
        if self.interpret:
            return jnp.broadcast_to(x[:, source : source + 1], self.shape)
        return pallas_triton.from_lane(x, self._iota(2) + source * self.width)

    def _across(self, x: jax.Array, axis: int, bit: int) -> jax.Array:
        """The value of the lane whose index along ``axis`` differs in ``bit``."""
        if self.interpret:
            parts = x.reshape(*x.shape[:axis], -1, 2, bit, *x.shape[axis + 1 :])
            return jnp.flip(parts, axis + 1).reshape(x.shape)
        return pallas_triton.from_lane_xor(x, bit * (self.width if axis == 1 else 1))

    def fold(self, values: list[jax.Array], axis: int, runs: int = 1) -> list[jax.Array]:
        """Sums of 2^k arrays over a lane axis, shared out: lane j has the j-th run of them.

        Fewer arrays than lanes: the j-th lane has the sum of array ``j // (lanes / arrays)``.
        With ``runs``, over lanes that many apart alone: j counts these.
        """
        place, bit = self._iota(axis), self.shape[axis] // 2
        while bit >= runs:
            if len(values) > 1:
                half = len(values) // 2
                upper = (place & bit) != 0
                pairs = list(zip(values[:half], values[half:], strict=True))
                values = [
                    jnp.where(upper, high, low)
                    + self._across(jnp.where(upper, low, high), axis, bit)
                    for low, high in pairs
                ]
            else:
                values = [values[0] + self._across(values[0], axis, bit)]
            bit //= 2
        return values

    def fold_states(self, values: list[jax.Array]) -> list[jax.Array]:
        """Sums of an array per state over runs of ``turns`` channels, of a turned tile.

        The j-th channel of a run has those of states j, turns + j, ...
        """
        values, bit = list(values), self.turns // 2
        while bit:
            # A partner has the state of this lane's n-th place in its place n ^ bit.
            for n in range(self.held):
                if n % (2 * bit) < bit and n % self.turns < 2 * bit:
                    values[n] += self._across(values[n ^ bit], 2, bit)
            bit //= 2
        return values[:: self.turns]

    def each(self, values: list[jax.Array]) -> list[jax.Array]:
        """A value per channel of a lane as one per state."""
        return [value for value in values for _ in range(self.held)]

    def inner(self, x: list[jax.Array], y: list[jax.Array]) -> list[jax.Array]:
        """Inner products over a lane's states of each of its channels."""
        runs = [slice(n, n + self.held) for n in range(0, len(x), self.held)]
        return [_inner(x[run], y[run]) for run in runs]

    def over_channels(self, x: list[jax.Array], y: list[jax.Array]) -> list[jax.Array]:
        """Inner products over the channels of a lane, per state."""
        return [_inner(x[n :: self.held], y[n :: self.held]) for n in range(self.held)]

    def by_token(self, values: list[jax.Array]) -> jax.Array:
        """Sums over the lanes of a channel, the k-th array's in the lane of the k-th token."""
        return self.fold(values, 1)[0]

    def over_tokens(self, x: jax.Array) -> jax.Array:
        """Sum over tokens, a token a lane, in all lanes of the channel."""
        first = self.slice % self._lanes_of_token == 0
        return self.fold([jnp.where(first, x, 0.0)], 1)[0]

    def over_warps(self, values: list[jax.Array]) -> jax.Array:
        """Sums [S, C * len(values)] over the warps of the program."""
        joined = pallas_triton.join(values).reshape(self.shape[0], -1).T
        parts = jax.lax.split(joined, [1] * self.shape[0], axis=1)
        return sum(parts[1:], parts[0]).reshape(self.slices, self.width * len(values))


def _inner(x: list[jax.Array], y: list[jax.Array]) -> jax.Array:
    total = x[0] * y[0]
    for x_n, y_n in zip(x[1:], y[1:], strict=True):
        total += x_n * y_n
    return total
