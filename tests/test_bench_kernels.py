"""The bench of operations: the floor is counted, and a red operation is not timed."""

import jax.numpy as jnp
import pytest

from hybrid_lm.bench import floor, kernels
from hybrid_lm.bench.kernels import CASES, Case, Kernels

FACTOR = {"right": 0.5, "wrong": 0.6, "reference": 0.5}


def rows(monkeypatch, flops):
    """Of an operation that halves 1000 numbers in bf16, on a device of 1 TB/s and 1 PFLOP/s."""
    monkeypatch.setattr(floor, "copied_bytes_per_s", lambda: 1e12)
    monkeypatch.setattr(floor, "flops_per_s", lambda: 1e15)
    case = Case(
        lambda x, implementation: x * FACTOR[implementation],
        lambda scale: (jnp.ones(1000 // scale, jnp.bfloat16),),
        ("right", "wrong"),
        flops,
    )
    monkeypatch.setattr(kernels, "CASES", {"halve": case})
    # Other processes would not have the case.
    monkeypatch.setattr(kernels, "in_processes", lambda f, cases: [f(*case) for case in cases])
    return Kernels().rows()


def test_the_floor_is_the_longer_of_bytes_and_arithmetic(monkeypatch):
    right, wrong = rows(monkeypatch, flops=1e3)
    # Forward x in, y out; backward x and dy in, dx out.
    assert (right["forward MB"], right["both MB"]) == (4e-3, 10e-3)
    assert right["both floor ms"] == pytest.approx(1e-5)
    assert right["forward share of floor"] == pytest.approx(4e-6 / right["forward ms"])
    assert wrong["forward ms"] == "red: not timed"
    assert wrong.keys() == right.keys()
    (right, _) = rows(monkeypatch, flops=1e9)
    assert right["both GFLOP"] == 3
    assert right["both floor ms"] == pytest.approx(3e-3)


def test_pairs_of_a_window_are_those_it_holds():
    full, window = (
        CASES[name].flops for name in ("attention B4 L8192 H16 K128", "attention, window 1024")
    )
    per_pair = 4 * 4 * 16 * 128
    assert full == per_pair * 8192 * 8193 / 2
    assert window == per_pair * (1024 * 1025 / 2 + (8192 - 1024) * 1024)
