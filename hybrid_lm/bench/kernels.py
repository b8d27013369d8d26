"""Every operation in every implementation the device can run: checked, then timed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_lm.bench.results import Row
from hybrid_lm.bench.timing import timed
from hybrid_lm.errors import UserError
from hybrid_lm.kernels.attention import attention
from hybrid_lm.kernels.delta_rule import delta_rule
from hybrid_lm.kernels.diagonal_scan import selective_scan
from hybrid_lm.kernels.ssd import ssd
from hybrid_lm.layers import unit

TOLERANCE = 0.005
"""Relative RMSE, per output and gradient, of bf16 inputs against the float32 reference."""


class Case(NamedTuple):
    """An operation on operands of a shape.

    Attributes:
        run: ``run(*operands, implementation=...)`` -> one output.
        operands: ``operands(scale)``: differentiable arrays, the length divided by ``scale``.
        implementations: that may be timed.
    """

    run: Callable[..., jax.Array]
    operands: Callable[[int], tuple[jax.Array, ...]]
    implementations: tuple[str, ...]


def _normal(*shapes: tuple[int, ...], dtype: Any = jnp.bfloat16) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))


def _attention(batch, length, heads, dim, documents=1, window=None) -> Case:
    def run(q, k, v, implementation):
        own = q.shape[1] // documents
        place_L = jnp.arange(q.shape[1], dtype=jnp.int32)
        starts_BL = jnp.broadcast_to(place_L // own * own, q.shape[:2])
        return attention(
            q,
            k,
            v,
            None if documents == 1 else starts_BL,
            window=window,
            max_segments=documents,
            implementation=implementation,
        )

    def operands(scale):
        return _normal(*[(batch, length // scale, heads, dim)] * 3)

    return Case(run, operands, ("cudnn", "xla"))


def _selective_scan(batch, length, inner, states) -> Case:
    def run(u, step, log_a, b, c, implementation):
        bias_E = jnp.full(inner, -2.0)
        return selective_scan(
            u, step, -jnp.exp(log_a), b, c, step_bias_E=bias_E, implementation=implementation
        )[0]

    def operands(scale):
        u, step = _normal(*[(batch, length // scale, inner)] * 2)
        (log_a,) = _normal((inner, states), dtype=jnp.float32)
        return u, step, log_a, *_normal(*[(batch, length // scale, states)] * 2)

    return Case(run, operands, ("pallas", "xla"))


def _ssd(batch, length, heads, value_dim, states, groups, decays=True) -> Case:
    def run(q, k, v, log_decay, implementation):
        log_decay = -jax.nn.softplus(log_decay.astype(jnp.float32) - 3)
        options = {"implementation": implementation}
        return ssd(q, k, v, log_decay if decays else None, **options)[0].astype(v.dtype)

    def operands(scale):
        length_ = length // scale
        q, k = _normal(*[(batch, length_, groups, states)] * 2)
        v, log_decay = _normal((batch, length_, heads, value_dim), (batch, length_, heads))
        return q / states**0.5, k / states**0.5, v, log_decay

    return Case(run, operands, ("pallas", "xla"))


def _delta_rule(batch, length, heads, key_dim, value_dim) -> Case:
    def run(q, k, v, beta, log_decay, implementation):
        log_decay = -jax.nn.softplus(log_decay.astype(jnp.float32) - 3)
        beta = jax.nn.sigmoid(beta.astype(jnp.float32))
        y, _ = delta_rule(q, k, v, beta, log_decay, implementation=implementation)
        return y.astype(v.dtype)

    def operands(scale):
        by_head = (batch, length // scale, heads)
        q, k, v, beta, log_decay = _normal(
            (*by_head, key_dim), (*by_head, key_dim), (*by_head, value_dim), by_head, by_head
        )
        return unit(q), unit(k), v, beta, log_decay

    return Case(run, operands, ("pallas", "xla"))


CASES = {
    "selective scan B2 L8192 E4096 N16": _selective_scan(2, 8192, 4096, 16),
    "selective scan B1 L65536 E1024 N16": _selective_scan(1, 65536, 1024, 16),
    "ssd B2 L8192 H64 P64 N128": _ssd(2, 8192, 64, 64, 128, 1),
    "linear attention B4 L8192 H16 K128 P128": _ssd(4, 8192, 16, 128, 128, 16, decays=False),
    "gated delta rule B4 L8192 H16 K128 P128": _delta_rule(4, 8192, 16, 128, 128),
    "attention B4 L8192 H16 K128": _attention(4, 8192, 16, 128),
    "attention, 4 documents a row": _attention(4, 8192, 16, 128, documents=4),
    "attention, window 1024": _attention(4, 8192, 16, 128, window=1024),
    "attention, window 1024, 4 documents": _attention(4, 8192, 16, 128, 4, 1024),
}


@dataclass(frozen=True)
class Kernels:
    """Operations at the shapes of docs/kernels.md, bf16 inputs.

    Values and gradients are checked first, on rows of 1/8 the length; a red one is not timed.
    """

    only: str = ""
    """Time the operations whose name holds this text."""

    def rows(self) -> list[Row]:
        chosen = {name: case for name, case in CASES.items() if self.only in name}
        if not chosen:
            raise UserError(f"no operation {self.only!r}; there are: {'; '.join(CASES)}")
        return [row for name, case in chosen.items() for row in _rows(name, case)]


def _gradients(run: Callable[..., jax.Array], *operands: jax.Array) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(run, *operands)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    return y, *pull(cotangent.astype(y.dtype))


def _error(case: Case, implementation: str) -> float:
    """Largest relative RMSE of an output or gradient against the float32 reference."""
    small = case.operands(8)
    wide = [x.astype(jnp.float32) for x in small]
    wants = jax.jit(partial(_gradients, partial(case.run, implementation="reference")))(*wide)
    gots = jax.jit(partial(_gradients, partial(case.run, implementation=implementation)))(*small)
    errors = []
    for got, want in zip(gots, wants, strict=True):
        want = np.asarray(want, np.float64)
        got = np.asarray(got.astype(jnp.float32), np.float64)
        norm = np.linalg.norm(want)
        errors.append(np.linalg.norm(got - want) / norm if norm else np.linalg.norm(got))
    return float(max(errors))


def _rows(name: str, case: Case) -> list[Row]:
    rows = []
    for implementation in case.implementations:
        row: Row = {"operation": name, "implementation": implementation}
        try:
            error = _error(case, implementation)
        except UserError as obstacle:
            rows.append(row | {"error": "-", "forward ms": str(obstacle), "both ms": "-"})
            continue
        row["error"] = error
        if not error <= TOLERANCE:
            rows.append(row | {"forward ms": "red: not timed", "both ms": "red: not timed"})
            continue
        run = partial(case.run, implementation=implementation)
        operands = case.operands(1)
        row["forward ms"] = timed(run, *operands).ms
        row["both ms"] = timed(partial(_gradients, run), *operands).ms
        rows.append(row)
    return rows
