"""How a jitted function is timed."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_CALLS = 5  # dispatched together, so that the host's time per call hides behind the device's
_SAMPLES = 5


class Timing(NamedTuple):
    """Of one compiled function.

    Attributes:
        ms: milliseconds per call, median.
        peak_mib: MiB that the program holds: inputs, outputs and temporaries.
    """

    ms: float
    peak_mib: float


def timed(function: Callable[..., Any], *operands: Any) -> Timing:
    """Compile ``function`` for ``operands`` and time it."""
    return measured(jax.jit(function).lower(*operands).compile(), *operands)


def measured(compiled: Any, *operands: Any) -> Timing:
    """Time a compiled function after a warm-up."""
    jax.block_until_ready(compiled(*operands))
    samples = []
    for _ in range(_SAMPLES):
        start = time.perf_counter()
        results = [compiled(*operands) for _ in range(_CALLS)]
        jax.block_until_ready(results)
        samples.append((time.perf_counter() - start) / _CALLS)
        del results
    memory = compiled.memory_analysis()
    assert memory is not None, "every backend reports what its programs hold"
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Timing(1e3 * statistics.median(samples), peak / 2**20)
