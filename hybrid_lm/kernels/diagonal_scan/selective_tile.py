"""How a program of the selective scan lays channels, states and tokens over its lanes.

A warp owns C channels with S lanes each, 32 lanes in all; a lane holds N / S states of its channel
in registers. What depends on the token and the channel alone is worked out for several tokens at
once, a token a lane, and handed to the channel's lanes token by token (`Tile.of`); sums over lanes
are shared out in the same way (`Tile.fold`), so that no lane repeats another's work.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels import pallas_triton

LOG2_E = 1.4426950408889634
_PROGRAM_STATES = 512  # that one lane of each warp would hold


def channels(states: int) -> int:
    """Channels of a program."""
    return _PROGRAM_STATES // states


def warps(held: int) -> int:
    """Warps of a program whose lanes hold ``held`` states."""
    return _PROGRAM_STATES // (32 * held)


class Tile:
    """Lanes [warps, S, C] of a program, over a row of the batch and a block of channels.

    Args:
        states: N.
        held: of them by a lane.
        tokens: of a round of the walk; S of them, or all, are worked out at once.
        interpret: whether the kernel runs as plain XLA, where there are no lanes to shuffle.
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
    ):
        self.row, self.held, self.interpret = row, held, interpret
        self.states, self.slices = states, states // held
        self.tokens = min(self.slices, tokens)
        self._lanes_of_token = self.slices // self.tokens
        self.width = 32 // self.slices
        self.shape = (warps(held), self.slices, self.width)
        self.slice = self._iota(1)
        self.channel = (block * self.shape[0] + self._iota(0)) * self.width + self._iota(2)
        self._states_4d = self._iota(1, held) * held + self._iota(3, held)

    def _iota(self, axis: int, *inner: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, (*self.shape, *inner), axis)

    def zeros(self) -> list[jax.Array]:
        return [jnp.zeros(self.shape, jnp.float32)] * self.held

    def get(self, ref, *at) -> list[jax.Array]:
        """Each lane's states of ``ref[*at]`` [N, E]."""
        return [ref[(*at, self.slice * self.held + n, self.channel)] for n in range(self.held)]

    def put(self, ref, values: list[jax.Array], *at) -> None:
        for n, value in enumerate(values):
            ref[(*at, self.slice * self.held + n, self.channel)] = value

    def of_channel(self, ref) -> jax.Array | None:
        """Each lane's value of ``ref`` [E], if there is one."""
        return None if ref is None else ref[self.channel]

    def shared(self, ref, t) -> list[jax.Array]:
        """Each lane's states of ``ref[row, t]`` [N], the same for all channels."""
        parts = jax.lax.split(ref[self.row, t, self._states_4d], [1] * self.held, axis=3)
        return [part.reshape(self.shape) for part in parts]

    def touch(self, refs, t, count: int) -> jax.Array:
        """Brings rows t .. t + count - 1 of ``refs`` [B, L, N] near; the value has no meaning."""
        lane = (self._iota(0) * self.slices + self.slice) * self.width + self._iota(2)
        at = lane * (count * self.states) // (32 * self.shape[0])
        values = [ref[self.row, t + at // self.states, at % self.states] for ref in refs]
        return sum(values[1:], values[0])

    def place(self, t) -> tuple:
        """Index of the tokens from t in [B, L, E], a token a lane."""
        return self.row, t + self.slice // self._lanes_of_token, self.channel

    def load(self, refs, t, count: int) -> list[list[jax.Array | None]]:
        """``refs`` [B, L, E] at tokens t .. t + count - 1, as many at once as `place` holds."""
        places = [self.place(t + k) for k in range(0, count, self.tokens)]
        return [[None if ref is None else ref[place] for ref in refs] for place in places]

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

    def fold(self, values: list[jax.Array], axis: int) -> list[jax.Array]:
        """Sums of 2^k arrays over a lane axis, shared out: lane j has the j-th run of them.

        Fewer arrays than lanes: the j-th lane has the sum of array ``j // (lanes / arrays)``.
        """
        place, bit = self._iota(axis), self.shape[axis] // 2
        while bit:
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

    def by_token(self, values: list[jax.Array]) -> jax.Array:
        """Sums over the lanes of a channel, the k-th array's in the lane of the k-th token."""
        return self.fold(values, 1)[0]

    def over_tokens(self, x: jax.Array) -> jax.Array:
        """Sum over tokens, a token a lane, in all lanes of the channel."""
        first = self.slice % self._lanes_of_token == 0
        return self.fold([jnp.where(first, x, 0.0)], 1)[0]

    def over_channels(self, values: list[jax.Array]) -> jax.Array:
        """Sums [S, len(values)] over the channels of the program."""
        joined = pallas_triton.join(self.fold(values, 2))
        return jnp.sum(joined, axis=0).reshape(self.slices, len(values))


def inner(x: list[jax.Array], y: list[jax.Array]) -> jax.Array:
    """Inner product over the states of a lane."""
    total = x[0] * y[0]
    for x_n, y_n in zip(x[1:], y[1:], strict=True):
        total += x_n * y_n
    return total


def softplus(x: jax.Array) -> jax.Array:
    """``log(1 + exp(x))`` to float32's precision, also where it is small.

    ``log(1 + z) = 2 atanh(z / (2 + z))``, as a series: its argument is at most 1/3.
    """
    z = jnp.exp2(-LOG2_E * jnp.abs(x))
    ratio = z / (2 + z)
    square = ratio * ratio
    series = jnp.full_like(x, 1 / 15)
    for k in (13, 11, 9, 7, 5, 3, 1):
        series = 1 / k + square * series
    return jnp.maximum(x, 0) + 2 * ratio * series


def softplus_slope(x: jax.Array, softplus_x: jax.Array) -> jax.Array:
    """Derivative of softplus."""
    return jnp.exp2(LOG2_E * (x - softplus_x))


def sigmoid(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp2(-LOG2_E * x))
