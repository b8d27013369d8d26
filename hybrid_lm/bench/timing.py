"""How a jitted function is timed."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_SAMPLE_S = 0.03  # of calls dispatched together: the host's time hides behind the device's
_CALLS = 5, 100  # least and most of them
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

    def seconds(calls: int) -> float:
        """Of a call. What it returns makes room for what the next one but one returns."""
        start = time.perf_counter()
        for _ in range(calls):
            results = compiled(*operands)
        jax.block_until_ready(results)
        return (time.perf_counter() - start) / calls

    least, most = _CALLS
    seconds(1)
    calls = min(max(math.ceil(_SAMPLE_S / seconds(least)), least), most)
    samples = [seconds(calls) for _ in range(_SAMPLES)]
    memory = compiled.memory_analysis()
    assert memory is not None, "every backend reports what its programs hold"
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Timing(1e3 * statistics.median(samples), peak / 2**20)
