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
        compile_s: seconds to trace and compile.
        peak_mib: MiB that the program holds: inputs, outputs and temporaries.
    """

    ms: float
    compile_s: float
    peak_mib: float


def compiled_in(function: Callable[..., Any], *operands: Any) -> tuple[Any, float]:
    """``function`` compiled for ``operands`` (arrays or their shapes), and the seconds it took."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*operands).compile()
    return compiled, time.perf_counter() - start


def timed(function: Callable[..., Any], *operands: Any) -> Timing:
    """Compile ``function`` for ``operands`` and time it."""
    return measured(*compiled_in(function, *operands), *operands)


def measured(compiled: Any, compile_s: float, *operands: Any) -> Timing:
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
    return Timing(1e3 * statistics.median(samples), compile_s, peak / 2**20)
