"""Hyena: gates between long convolutions whose filters are functions of time."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.causal_conv import causal_conv
from hybrid_lm.kernels.long_conv import flops_per_input, long_conv
from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.layers import fan_in, param, project, symmetric_uniform
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, register

DEPTH = 3
"""Layers with a sine in the network of the filters."""
LAST, SLOWEST, FASTEST, SHIFT = 1e-2, 1.5, 0.3, 0.05
"""Channels decay to `LAST` in `SLOWEST` to `FASTEST` times max_length; `SHIFT` is left."""


@register("hyena")
@dataclass(frozen=True)
class Hyena(MixerConfig):
    """``z_1 = x_1 * v``, ``z_{n+1} = x_{n+1} * (h_n conv z_n + d_n z_n)``, ``y = out(z_N)``.

    v and the gates x_1 to x_N are projections after a short convolution each. The filter is
    ``h_n(t) = (exp(-a t) + b) FFN_n(t, cos(w_k t), -sin(w_k t))`` with sines as activations, its
    decay a is another one in every channel.

    Poli et al. 2023 (arXiv 2302.10866), definition 3.1 and section 3.3. As in the authors' code,
    the short convolution of v is the first of the N filters of definition 3.1, so that N - 1 are
    long. Sines, features, window and start are those of their later HyenaDNA (Nguyen et al. 2023,
    arXiv 2306.15794); the paper's language models have 16 bands and sines of frequency 14. Filters
    are as long as max_length: of a longer document, a token sees the latest max_length tokens.
    """

    order: int = 2
    """N, gates."""
    conv_width: int = 3
    """Taps of the short convolutions."""
    filter_width: int = 64
    """Width of the network of the filters."""
    bands: int = 2
    """Cosines and sines that the network is given beside the time, of 0, 1, 2, ... periods."""
    sine_frequency: float = 10.0
    """Start of the (learned) factors inside the activations ``sin(f x)``."""
    max_length: int = 8192
    """Taps of the filters; times are distances in tokens over this."""
    chunk_size: int = 128
    """From how many tokens on filters are applied by FFT."""

    def build(self, width: int, rngs: nnx.Rngs) -> "HyenaMixer":
        if self.order < 2:
            raise UserError(f"hyena: order {self.order} must be at least 2")
        return HyenaMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        projections = 2 * width * width * (self.order + 2)
        short = 2 * (self.conv_width + 1) * width * (self.order + 1)
        filters = (self.order - 1) * width
        taps = min(length, self.max_length)
        hidden = 1 + 2 * self.bands + (DEPTH - 1) * self.filter_width + filters
        network = 2 * self.filter_width * hidden * taps / length
        long = flops_per_input(length, taps, self.chunk_size)
        return projections + short + network + filters * long


class HyenaMixer(nnx.Module):
    """State: ``short`` [B, W - 1, N + 1, D], the last inputs of the short convolutions; ``long``
    [B, S, N - 1, D], those of the long ones, right-aligned and 0 before the document; ``seen`` [B],
    how many tokens of the document came so far, counted up to S + 1; ``segment`` [B].

    S is `Context.capacity`, or max_length - 1 if that is less. As in attention, a document that
    outgrows a fixed capacity gives NaN for the tokens that would see what is lost.
    """

    def __init__(self, config: Hyena, width: int, rngs: nnx.Rngs):
        self.config = config
        self.width = width
        order, taps, hidden = config.order, config.conv_width, config.filter_width
        features = 1 + 2 * config.bands
        inputs, by_taps = (order + 1, width), symmetric_uniform(taps**-0.5)
        by_features = symmetric_uniform(features**-0.5)
        by_hidden = symmetric_uniform(hidden**-0.5)

        def network(shape, init):
            return param(rngs, shape, (None,) * len(shape), init, decay=False)

        self.inputs = param(rngs, (width, *inputs), ("embed", None, "inner"), fan_in(width))
        self.conv = param(rngs, (taps, *inputs), (None, None, "inner"), by_taps)
        self.conv_bias = param(rngs, inputs, (None, "inner"), by_taps, decay=False)
        self.first = network((features, hidden), by_features)
        self.first_bias = network((hidden,), by_features)
        self.hidden = network((DEPTH - 1, hidden, hidden), by_hidden)
        self.hidden_bias = network((DEPTH - 1, hidden), by_hidden)
        frequency = nnx.initializers.constant(config.sine_frequency)
        self.frequency = network((DEPTH, hidden), frequency)
        filters = (order - 1, width)
        self.last = param(rngs, (hidden, *filters), (None, None, "inner"), by_hidden, decay=False)
        self.skip = param(rngs, filters, (None, "inner"), nnx.initializers.normal(1), decay=False)
        self.out = param(rngs, (width, width), ("inner", "embed"), fan_in(width))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        config, (batch, length, _) = self.config, x_BLD.shape
        resets_BL = ctx.resets_BL(None if state is None else state["segment"])
        held = self.initial_state(batch, x_BLD.dtype) if state is None else state
        inputs_BLnD = project("bld,dne->blne", x_BLD, self.inputs)
        v_BLnD, short = self._short(
            inputs_BLnD, resets_BL, held["short"], ctx.implementation.causal_conv
        )
        earlier = held["long"].shape[1]
        filters_MnD = self.filters(min(earlier + length, config.max_length))
        z_BLD, before = v_BLnD[:, :, 0] * v_BLnD[:, :, 1], []
        for n in range(config.order - 1):
            before.append(z_BLD)
            y_BLD = long_conv(
                z_BLD,
                filters_MnD[:, n],
                resets_BL,
                held["long"][:, :, n],
                chunk_size=config.chunk_size,
                implementation=ctx.implementation.long_conv,
            )
            z_BLD = v_BLnD[:, :, n + 2] * y_BLD.astype(x_BLD.dtype)
        y_BLD = project("ble,ed->bld", z_BLD, self.out)
        if state is not None:
            y_BLD = jnp.where(self._lost_BL(resets_BL, state, length)[..., None], jnp.nan, y_BLD)
        past = self._past(jnp.stack(before, axis=2), resets_BL, held, ctx)
        return y_BLD, {"short": short, "segment": ctx.last_segment_B()} | past

    def filters(self, taps: int) -> jax.Array:
        """The first taps of all filters, the skip terms among them: [M, N - 1, D].

        In float32 (float64 if the parameters are). Sines of ten times their input amplify rounding
        from layer to layer, so that the filters are exact to some 1e-5: no more than rounding the
        parameters changes them.
        """
        config, dtype = self.config, self.first[...].dtype
        place_M1 = jnp.arange(taps, dtype=dtype)[:, None]
        time_M1 = place_M1 / max(config.max_length - 1, 1)
        # Not 0 periods, of which cosine and sine are constants.
        periods_k = np.linspace(1e-4, config.bands - 1, config.bands)
        angle_Mk = place_M1 * jnp.asarray(2 * np.pi / config.max_length * periods_k, dtype)
        h_MF = jnp.concatenate([time_M1, jnp.cos(angle_Mk), -jnp.sin(angle_Mk)], axis=1)
        h_MF = project("me,ef->mf", h_MF, self.first) + self.first_bias[...]
        h_MF = jnp.sin(self.frequency[0] * h_MF)
        for layer in range(DEPTH - 1):
            h_MF = einsum_f32("mf,fg->mg", h_MF, self.hidden[layer]) + self.hidden_bias[layer]
            h_MF = jnp.sin(self.frequency[1 + layer] * h_MF)
        decay_D = np.linspace(-np.log(LAST) / SLOWEST, -np.log(LAST) / FASTEST, self.width)
        window_MD = jnp.exp(-time_M1 * jnp.asarray(decay_D, dtype)) + SHIFT
        filters_MnD = window_MD[:, None] * project("mf,fnd->mnd", h_MF, self.last)
        return filters_MnD.at[0].add(self.skip[...])

    def _short(
        self,
        inputs_BLnD: jax.Array,
        resets_BL: jax.Array | None,
        past: jax.Array,
        implementation: str | None,
    ) -> tuple[jax.Array, jax.Array]:
        """The short convolutions, and the last of their inputs."""

        def flat(x):
            return x.reshape(*x.shape[:-2], math.prod(x.shape[-2:]))

        v_BLE, past_BWE = causal_conv(
            flat(inputs_BLnD),
            flat(self.conv[...]),
            flat(self.conv_bias[...]),
            resets_BL,
            flat(past),
            implementation=implementation,
        )
        return v_BLE.reshape(inputs_BLnD.shape), past_BWE.reshape(past.shape)

    def _lost_BL(self, resets_BL: jax.Array | None, state: State, length: int) -> jax.Array:
        """True where a token would see tokens that the state had no room for."""
        capacity = state["long"].shape[1]
        place_L = jnp.arange(length)
        in_reach_L = place_L + capacity + 1 < self.config.max_length
        lost_BL = (state["seen"] > capacity)[:, None] & in_reach_L
        if resets_BL is None:
            return lost_BL
        return lost_BL & (jnp.cumsum(resets_BL, axis=1) == 0)

    def _past(
        self, before_BLnD: jax.Array, resets_BL: jax.Array | None, held: State, ctx: Context
    ) -> State:
        """``long`` and ``seen`` after the row."""
        length = before_BLnD.shape[1]
        place_L = jnp.arange(length, dtype=jnp.int32)
        seen_B = held["seen"] + length
        long_BSnD = jnp.concatenate([held["long"].astype(ctx.dtype), before_BLnD], axis=1)
        total = long_BSnD.shape[1]
        if resets_BL is not None:
            last_B = jnp.max(jnp.where(resets_BL, place_L, -1), axis=1)
            seen_B = jnp.where(last_B < 0, seen_B, length - last_B)
            own_BS = jnp.arange(total) >= total - seen_B[:, None]
            long_BSnD = jnp.where(own_BS[..., None, None], long_BSnD, 0)
        capacity = min(total if ctx.capacity is None else ctx.capacity, self.config.max_length - 1)
        missing = max(capacity - total, 0)
        padded = jnp.pad(long_BSnD, ((0, 0), (missing, 0), (0, 0), (0, 0)))
        long_BSnD = padded[:, padded.shape[1] - capacity :].astype(ctx.dtype)
        return {"long": long_BSnD, "seen": jnp.minimum(seen_B, capacity + 1)}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        config = self.config
        room, none = min(capacity, config.max_length - 1), jnp.zeros((batch,), jnp.int32)
        return {
            "short": jnp.zeros((batch, config.conv_width - 1, config.order + 1, self.width), dtype),
            "long": jnp.zeros((batch, room, config.order - 1, self.width), dtype),
            "seen": none,
            "segment": none + CONTINUES,
        }
