"""How fast training runs: tokens per second, and the share of the device's peak it makes use of."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

# Dense bfloat16 matrix products, from the vendors' data sheets, by JAX's name of the device.
PEAK_FLOPS_PER_S = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


class Peak(NamedTuple):
    """FLOPs per second that the devices can do at best, and where the number is from."""

    flops_per_s: float
    origin: str


class Rate(NamedTuple):
    """Speed over some steps."""

    tokens_per_s: float
    step_ms: float


class Stopwatch:
    """Wall time of training steps alone: compilation and pauses are not counted."""

    def __init__(self):
        self._clear()
        self._since = 0.0

    def start(self) -> None:
        """The first step, or the first after a pause, is about to be dispatched."""
        self._since = time.perf_counter()

    def step_done(self, tokens: int) -> None:
        """One more step is known to be done."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        self._steps += 1
        self._tokens += tokens

    def rate(self) -> Rate:
        """Speed over the steps since the last call (at least one)."""
        rate = Rate(self._tokens / self._seconds, 1e3 * self._seconds / self._steps)
        self._clear()
        return rate

    def _clear(self) -> None:
        self._seconds, self._steps, self._tokens = 0.0, 0, 0


def peak(mesh: Mesh, dtype: DTypeLike) -> Peak:
    """Peak of all devices: by data sheet where that is known, else of a measured product."""
    device = mesh.devices.flat[0]
    kind = device.device_kind
    if jnp.dtype(dtype) == jnp.bfloat16 and kind in PEAK_FLOPS_PER_S:
        return Peak(mesh.size * PEAK_FLOPS_PER_S[kind], f"data sheet of {kind}, bfloat16")
    flops_per_s = product_flops_per_s(dtype)
    return Peak(mesh.size * flops_per_s, f"{dtype} products timed on {kind}")


def product_flops_per_s(dtype: DTypeLike) -> float:
    """What one local device does in a large product of square matrices, timed."""
    device = jax.local_devices()[0]
    size = 1024 if device.platform == "cpu" else 8192
    square = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), device)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    product(square).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(square).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
