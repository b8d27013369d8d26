"""What the laws run on: every registered mixer at a tiny size, and rows that are hard on it."""

import dataclasses
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybrid_lm import mixers
from hybrid_lm.leaks.measures import resized
from hybrid_lm.mixers import Context, MixerConfig
from tests.numerics import jit

WIDTH = 16

# Small enough that a row of some ten tokens has several heads, chunks and full windows.
TINY = {
    "heads": 4,
    "state_size": 8,
    "head_dim": 8,
    "chunk_size": 4,
    "block_size": 4,
    "feature_dim": 3,
    "features": 8,
    "buckets": 2,
    "bucket_window": 4,
    "slots": 3,
    "landmarks": 3,
    "filter_width": 8,
}

# Settings that change what a token sees or what the state holds. A mixer that is not here runs its
# default.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "attention": {"window": {"window": 5, "kv_heads": 2}},
    # Sines of ten times their input amplify the rounding of the parameters to some 1e-5: not here.
    "hyena": {"window": {"max_length": 12, "order": 3, "sine_frequency": 1.0}},
}

# Settings that only change the numbers: for the laws about them.
ARITHMETIC: dict[str, dict[str, dict[str, Any]]] = {
    "attention": {"nope": {"rope_theta": None, "qk_norm": False}},
    "cosine": {"reweight": {"reweight": True, "max_length": 20}},
    "linear": {
        "relu": {"feature_map": "relu", "decay": "head"},
        "exp": {"feature_map": "exp"},
        "taylor2": {"feature_map": "taylor2", "qk_norm": True, "decay": "token"},
    },
    "mamba2": {"groups": {"groups": 2}},
    "performer": {"long keys": {"qk_norm": False}},
    "rfa": {"gate": {"gate": True}},
}

# Numbers are float32, and float64 in tests that use the fixture of that name.


@dataclass(frozen=True)
class Case:
    """A mixer's config under the name that the test shows."""

    name: str
    config: MixerConfig
    is_variant: bool = False
    """Whether it is one of `VARIANTS` or `ARITHMETIC`."""

    def __str__(self) -> str:
        return self.name


def defaults(**sizes: int) -> list[Case]:
    """Every registered mixer under its default config, with fields of ``sizes`` (or `TINY`)."""
    return [Case(key, resized(mixers.get(key)(), sizes or TINY)) for key in mixers.names()]


def cases(*, arithmetic: bool = False, **sizes: int) -> list[Case]:
    """`defaults` and the `VARIANTS` (and `ARITHMETIC`) of each."""
    found = []
    for default in defaults(**sizes):
        found.append(default)
        variants = VARIANTS.get(default.name, {})
        if arithmetic:
            variants = variants | ARITHMETIC.get(default.name, {})
        found += [
            Case(
                f"{default.name}-{name}",
                dataclasses.replace(default.config, **fields),
                is_variant=True,
            )
            for name, fields in variants.items()
        ]
    return found


@cache
def _graph(config: MixerConfig, width: int) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: config.build(width, nnx.Rngs(0))))[0]


@cache
def _start(config: MixerConfig, width: int) -> nnx.State:
    with jax.enable_x64(False), jax.ensure_compile_time_eval():  # also while a caller is traced
        start = jit(lambda: nnx.state(config.build(width, nnx.Rngs(0))))()
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), jax.device_get(start))


def parameters(config: MixerConfig, width: int = WIDTH) -> nnx.State:
    """Parameters as they start, each moved a little off its special value (0, 1, one for all)."""
    return jax.tree.map(jnp.asarray, _start(config, width))


def module(config: MixerConfig, params: Any, width: int = WIDTH) -> Any:
    """The mixer with these parameters."""
    return nnx.merge(_graph(config, width), params)


def run(config: MixerConfig, params: Any, x_BLD: jax.Array, ctx: Context, state: Any = None):
    """The mixer's outputs and next state."""
    return module(config, params, x_BLD.shape[-1])(x_BLD, ctx, state)


def random_x(rng: np.random.Generator, batch: int, length: int) -> jax.Array:
    """Inputs whose tokens differ widely in scale."""
    scale = np.exp(rng.normal(size=(batch, length, 1)))
    return jnp.asarray(scale * rng.normal(size=(batch, length, WIDTH)))


def packed_rows(rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
    """segment_ids_BL: documents of very different lengths (many of one token) under numbers in no
    order, which come back in other rows and, after another document, in the same row.

    All rows but the first end in padding (0).
    """
    rows = np.zeros((batch, length), np.int32)
    for row, ids_L in enumerate(rows):
        padding = rng.integers(1, max(2, length // 6)) if row else 0
        start, last = 0, 0
        while start < length - padding:
            size = 1 if rng.random() < 0.4 else int(rng.integers(2, 2 + length // 3))
            stop = min(start + size, length - padding)
            last = ids_L[start:stop] = rng.choice([i for i in (2, 3, 5, 9) if i != last])
            start = stop
    return rows


def positions(segment_ids_BL: np.ndarray) -> np.ndarray:
    """Place of each token within its run of one id."""
    place_BL = np.zeros_like(segment_ids_BL)
    for t in range(1, place_BL.shape[1]):
        same_B = segment_ids_BL[:, t] == segment_ids_BL[:, t - 1]
        place_BL[:, t] = np.where(same_B, place_BL[:, t - 1] + 1, 0)
    return place_BL


def packed_context(segment_ids_BL: np.ndarray) -> Context:
    """Context of rows with these documents."""
    segment_ids_BL = np.asarray(segment_ids_BL, np.int32)
    return Context(
        jnp.asarray(positions(segment_ids_BL)),
        jnp.asarray(segment_ids_BL),
        dtype=jnp.result_type(float),
    )


def single_context(batch: int, length: int) -> Context:
    """Context of rows that are one document each, without ids."""
    return Context.of_documents(batch, length, dtype=jnp.result_type(float))


def rows_context(config: MixerConfig, rng: np.random.Generator, batch: int, length: int) -> Context:
    """Packed rows where the mixer can have them, else rows of one document."""
    if config.packable:
        return packed_context(packed_rows(rng, batch, length))
    return single_context(batch, length)


def documents(segment_ids_BL: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every document; padding is none."""
    found = []
    for row, ids_L in enumerate(segment_ids_BL):
        edges = [0, *(np.flatnonzero(np.diff(ids_L)) + 1), len(ids_L)]
        spans = pairwise(edges)
        found += [(row, int(lo), int(hi)) for lo, hi in spans if ids_L[lo]]
    return found
