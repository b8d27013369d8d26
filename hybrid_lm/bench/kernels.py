"""Every operation in every implementation the device can run: checked, then timed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_lm.bench.case import Case, normal
from hybrid_lm.bench.floor import Work
from hybrid_lm.bench.processes import Program, in_processes, load, program
from hybrid_lm.bench.results import Form, Row
from hybrid_lm.bench.state_spaces import s4_case, s4d_case
from hybrid_lm.bench.timing import measured
from hybrid_lm.errors import UserError
from hybrid_lm.kernels.attention import attention
from hybrid_lm.kernels.causal_conv import causal_conv
from hybrid_lm.kernels.delta_rule import delta_rule
from hybrid_lm.kernels.diagonal_scan import selective_scan
from hybrid_lm.kernels.ssd import ssd
from hybrid_lm.layers import unit

TOLERANCE = 0.005
"""Relative RMSE, per output and gradient, of bf16 inputs against the float32 reference."""


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
        # Kernels for long rows must be checked on rows that they take.
        return normal(*[(batch, length // min(scale, 4), heads, dim)] * 3)

    own, reach = length // documents, window or length
    pairs = documents * sum(min(place + 1, reach) for place in range(own))  # query, key; in a row
    own_kernels = ("pallas",) if dim == 64 else ()
    return Case(run, operands, (*own_kernels, "cudnn", "xla"), 4.0 * batch * heads * dim * pairs)


def _causal_conv(batch, length, inner, taps, documents=1) -> Case:
    def run(x, weight, bias, implementation):
        own = x.shape[1] // documents
        starts_L = jnp.arange(x.shape[1]) % own == 0
        resets_BL = None if documents == 1 else jnp.broadcast_to(starts_L, x.shape[:2])
        return causal_conv(x, weight, bias, resets_BL, silu=True, implementation=implementation)[0]

    def operands(scale):
        weight, bias = normal((taps, inner), (inner,), dtype=jnp.float32)
        return *normal((batch, length // scale, inner)), weight, bias

    # A sigmoid is counted as an exponential, a sum and a quotient.
    return Case(run, operands, ("pallas", "xla"), (2.0 * taps + 4) * batch * length * inner)


def _selective_scan(batch, length, inner, states) -> Case:
    def run(u, step, log_a, b, c, implementation):
        bias_E = jnp.full(inner, -2.0)
        return selective_scan(
            u,
            step,
            -jnp.exp(log_a),
            b,
            c,
            step_bias_E=bias_E,
            out_dtype=u.dtype,
            implementation=implementation,
        )[0]

    def operands(scale):
        u, step = normal(*[(batch, length // scale, inner)] * 2)
        (log_a,) = normal((inner, states), dtype=jnp.float32)
        return u, step, log_a, *normal(*[(batch, length // scale, states)] * 2)

    # Per state: exponent, exp, product of the write, multiply-add, multiply-add of the read-out.
    return Case(run, operands, ("pallas", "xla"), 7.0 * batch * length * inner * states)


def _ssd(batch, length, heads, value_dim, states, groups, decays=True) -> Case:
    def run(q, k, v, log_decay, implementation):
        log_decay = -jax.nn.softplus(log_decay.astype(jnp.float32) - 3)
        options = {"implementation": implementation}
        return ssd(q, k, v, log_decay if decays else None, **options)[0].astype(v.dtype)

    def operands(scale):
        length_ = length // scale
        q, k = normal(*[(batch, length_, groups, states)] * 2)
        v, log_decay = normal((batch, length_, heads, value_dim), (batch, length_, heads))
        return q / states**0.5, k / states**0.5, v, log_decay

    # Per entry of the state: multiply-adds of the write and of the read-out, and the decay.
    per_entry = 5.0 if decays else 4.0
    flops = per_entry * batch * length * heads * value_dim * states
    return Case(run, operands, ("pallas", "xla"), flops)


def _delta_rule(batch, length, heads, key_dim, value_dim) -> Case:
    def run(q, k, v, beta, log_decay, implementation):
        log_decay = -jax.nn.softplus(log_decay.astype(jnp.float32) - 3)
        beta = jax.nn.sigmoid(beta.astype(jnp.float32))
        y, _ = delta_rule(q, k, v, beta, log_decay, implementation=implementation)
        return y.astype(v.dtype)

    def operands(scale):
        by_head = (batch, length // scale, heads)
        q, k, v, beta, log_decay = normal(
            (*by_head, key_dim), (*by_head, key_dim), (*by_head, value_dim), by_head, by_head
        )
        return unit(q), unit(k), v, beta, log_decay

    # Per entry of the state: decay, multiply-adds of what is found, of the write and the read-out.
    flops = 7.0 * batch * length * heads * key_dim * value_dim
    return Case(run, operands, ("pallas", "xla"), flops)


CASES = {
    "selective scan B2 L8192 E4096 N16": _selective_scan(2, 8192, 4096, 16),
    "selective scan B1 L65536 E1024 N16": _selective_scan(1, 65536, 1024, 16),
    "s4d B4 L8192 D1024 N64": s4d_case(4, 8192, 1024, 32),
    "s4d layer B4 L8192 D1024 N64": s4d_case(4, 8192, 1024, 32, layer=True),
    "s4 B4 L8192 D1024 N64": s4_case(4, 8192, 1024, 32),
    "s4 layer B4 L8192 D1024 N64": s4_case(4, 8192, 1024, 32, layer=True),
    "ssd B2 L8192 H64 P64 N128": _ssd(2, 8192, 64, 64, 128, 1),
    "linear attention B4 L8192 H16 K128 P128": _ssd(4, 8192, 16, 128, 128, 16, decays=False),
    "gated delta rule B4 L8192 H16 K128 P128": _delta_rule(4, 8192, 16, 128, 128),
    "causal conv B2 L8192 E4096 W4, silu": _causal_conv(2, 8192, 4096, 4),
    "causal conv B8 L8192 E1280 W4, silu": _causal_conv(8, 8192, 1280, 4),
    "causal conv B1 L65536 E2048 W4, silu": _causal_conv(1, 65536, 2048, 4),
    "causal conv B1 L65536 E2048 W4, silu, 32 documents": _causal_conv(1, 65536, 2048, 4, 32),
    "attention B4 L8192 H16 K128": _attention(4, 8192, 16, 128),
    "attention B8 L8192 H8 K64": _attention(8, 8192, 8, 64),
    "attention, 4 documents a row": _attention(4, 8192, 16, 128, documents=4),
    "attention, window 1024": _attention(4, 8192, 16, 128, window=1024),
    "attention, window 1024, 4 documents": _attention(4, 8192, 16, 128, 4, 1024),
}


@dataclass(frozen=True)
class Kernels:
    """Operations at the shapes of docs/kernels.md, bf16 inputs.

    Compiled side by side in processes of their own; on GPUs, XLA takes products from cuBLAS alone.
    Values and gradients are checked first, on rows of 1/8 the length (attention: 1/4); a red one is
    not timed. Of a layer, that is all but its projections.
    The floor is the longer of moving all inputs and outputs once, as fast as a copy, and of the
    arithmetic of the definition, as fast as a bf16 matrix product, both measured in the same run.
    With ``--output``, rows are added to those of the same device and versions that are there.
    """

    only: str = ""
    """Time the operations whose name holds this text."""

    def form(self) -> Form:
        """Rows are of an operation and an implementation."""
        return Form(("operation", "implementation"))

    def rows(self) -> list[Row]:
        chosen = {name: case for name, case in CASES.items() if self.only in name}
        if not chosen:
            raise UserError(f"no operation {self.only!r}; there are: {'; '.join(CASES)}")
        forms = {name: (_REFERENCE, *case.implementations) for name, case in chosen.items()}
        wanted = [(name, form) for name in chosen for form in forms[name]]
        programs = dict(zip(wanted, in_processes(compiled, wanted), strict=True))
        rows = []
        for name, case in chosen.items():
            try:
                truth = _results(programs[name, _REFERENCE], case)
            except Exception as failure:  # the other operations are still worth their time
                truth = failure
            for form in case.implementations:
                row = {"operation": name, "implementation": form}
                rows.append(row | _measures(case, programs[name, form], truth))
        return rows


def compiled(name: str, implementation: str) -> dict[str, Program] | str:
    """Programs of an operation, by what they are for; or what keeps it from running here.

    ``check`` on short rows, alone for the reference, then float32; ``forward`` and ``both``.
    """
    case = CASES[name]
    run, checked = (
        partial(what, implementation=implementation)
        for what in (case.run, case.checked or case.run)
    )
    short, whole = (jax.eval_shape(partial(case.operands, scale)) for scale in (_SHORT, 1))
    if implementation == _REFERENCE:
        short = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), short)
    try:
        y = jax.eval_shape(checked, *short)
        programs = {"check": program(partial(_gradients, checked), y, *short)}
        if implementation != _REFERENCE:
            y = jax.eval_shape(run, *whole)
            both = program(partial(_gradients, run), y, *whole)
            programs |= {"forward": program(run, *whole), "both": both}
    except UserError as obstacle:
        return str(obstacle)
    return programs


def _gradients(
    run: Callable[..., jax.Array], cotangent: jax.Array, *operands: jax.Array
) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(run, *operands)
    return y, *pull(cotangent)


def _with_cotangent(both: Any, operands: tuple[jax.Array, ...]) -> list[jax.Array]:
    """What a program of `_gradients` takes."""
    taken = jax.tree.leaves(both.in_avals)
    weights = jnp.cos(jnp.arange(taken[0].size, dtype=jnp.float32)).reshape(taken[0].shape)
    return [x.astype(aval.dtype) for x, aval in zip((weights, *operands), taken, strict=True)]


def _results(programs: dict[str, Program] | str | Exception, case: Case) -> list[np.ndarray]:
    """Output and gradients of short rows, float64."""
    if isinstance(programs, Exception):
        raise programs
    assert not isinstance(programs, str), "the reference runs everywhere"
    check = load(programs["check"])
    results = check(*_with_cotangent(check, case.operands(_SHORT)))
    return [np.asarray(result.astype(jnp.float32), np.float64) for result in results]


def _error(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Largest relative RMSE of an output or gradient; nan if one of them is."""
    pairs = zip(found, truth, strict=True)
    norms = [(np.linalg.norm(got - want), np.linalg.norm(want)) for got, want in pairs]
    return float(np.max([apart / norm if norm else apart for apart, norm in norms]))


def _measures(
    case: Case,
    programs: dict[str, Program] | str | Exception,
    truth: list[np.ndarray] | Exception,
) -> Row:
    row: Row = {"error": "–"} | {f"{what} {of}": "–" for what in _PASSES for of in _COLUMNS}
    if isinstance(programs, str):
        return row | {"forward ms": programs}
    try:
        if isinstance(truth, Exception):
            raise truth
        row["error"] = error = _error(_results(programs, case), truth)
        if not error <= TOLERANCE:
            return row | {f"{what} ms": "red: not timed" for what in _PASSES}
        assert not isinstance(programs, Exception), "its results were just taken"
        forward, both = (load(programs[what]) for what in _PASSES)
        operands = case.operands(1)
        weighted = _with_cotangent(both, operands)
        work = Work(_bytes(operands), _bytes(weighted[:1]), case.flops)
        row |= _timed("forward", work, forward, operands)
        row |= _timed("both", work.with_gradients(), both, weighted)
    except Exception as failure:  # the other rows are still worth their time
        row["forward ms"] = f"failed: {(str(failure) or repr(failure))[:100]}"
    return row


def _timed(what: str, work: Work, program: Any, operands: Iterable[jax.Array]) -> Row:
    ms, floor_ms = measured(program, *operands).ms, work.floor_ms()
    values = (ms, work.bytes / 1e6, work.flops / 1e9, floor_ms, floor_ms / ms)
    return {f"{what} {of}": value for of, value in zip(_COLUMNS, values, strict=True)}


def _bytes(arrays: Iterable[jax.Array]) -> int:
    return sum(array.size * array.dtype.itemsize for array in arrays)


_SHORT = 8  # rows that are checked are so many times shorter
_REFERENCE = "reference"
_PASSES = ("forward", "both")
_COLUMNS = ("ms", "MB", "GFLOP", "floor ms", "share of floor")
