"""Which implementation of an operation runs: the best that can, or the one that was named."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp

from hybrid_lm.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Implementation:
    """One choice per operation; None takes the best that supports the device and shapes."""

    attention: Literal["pallas", "cudnn", "xla", "reference"] | None = None
    """Softmax attention: Hopper kernels (bf16, long rows), cuDNN's fused kernel (GPU, bf16),
    blocks with online softmax, or naive."""
    block_attention: Literal["pallas", "xla", "reference"] | None = None
    """Attention to chosen blocks: GPU kernels (bf16, one document a row), gathered matrix products,
    or the whole matrix masked."""
    bucket_attention: Literal["xla", "reference"] | None = None
    """Attention inside hash buckets: sorted windows, or step by step."""
    causal_conv: Literal["pallas", "xla", "reference"] | None = None
    """Short causal convolution: GPU kernels, a product for each tap in XLA, or step by step."""
    ssd: Literal["pallas", "xla", "reference"] | None = None
    """State-space duality (Mamba-2, linear attention): GPU or TPU kernels, chunked matrix products
    in XLA, or step by step."""
    selective_scan: Literal["pallas", "xla", "reference"] | None = None
    """Mamba's recurrence: GPU or TPU kernels, two-level scan over chunks, or step by step."""
    s4d_scan: Literal["pallas", "xla", "reference"] | None = None
    """S4D's recurrence: GPU kernels, Toeplitz matrices and a scan over chunks in XLA, or step by
    step."""
    delta_rule: Literal["pallas", "xla", "reference"] | None = None
    """Delta rule, gated or not: GPU kernels (bf16), chunks by the UT transform in XLA, or step by
    step."""
    s4: Literal["pallas", "xla", "reference"] | None = None
    """S4's recurrence: GPU kernels (bf16), convolution in chunks in XLA, or step by step."""
    long_conv: Literal["xla", "reference"] | None = None
    """Convolution with a long filter: blocks that double, by FFT, or step by step."""
    gla: Literal["pallas", "xla", "reference"] | None = None
    """Linear attention whose key channels decay apart: GPU kernels (bf16), chunked matrix products
    in XLA, or step by step."""
    pseudo_inverse: Literal["pallas", "xla", "reference"] | None = None
    """Nyström's inverse: GPU kernels (bf16), or matrix products in XLA, in the order that rounds
    least or in the paper's."""
    block_scan: Literal["pallas", "xla", "reference"] | None = None
    """What finished blocks leave behind (Linformer, Nyström): GPU kernels, or associative scans."""
    gated_norm: Literal["pallas", "xla", "reference"] | None = None
    """Gate and norm after Mamba-2's recurrence: a GPU kernel each way, or the definition (as xla
    and as reference)."""
    residual_norm: Literal["pallas", "xla", "reference"] | None = None
    """Norms in front of mixers and MLPs: backward a GPU kernel, or the definition (as xla and as
    reference)."""
    gated_mlp: Literal["pallas", "xla", "reference"] | None = None
    """MLPs: gate and up as one product and a GPU kernel each way, or the definition (as xla and as
    reference)."""
    rotary: Literal["pallas", "xla", "reference"] | None = None
    """Queries and keys, their norm and rotary positions: one product and a GPU kernel each way, or
    the definition (as xla and as reference)."""
    token_sums: Literal["pallas", "xla", "reference"] | None = None
    """Gradient of the embedding: a GPU kernel over the sorted tokens, a product with one-hot rows,
    or a scatter."""
    cross_entropy: Literal["pallas", "xla", "reference"] | None = None
    """Training's loss and its gradient, given the logits: a GPU kernel, or the definition (as xla
    and as reference)."""


def choose(op: str, named: str | None, obstacles: Mapping[str, str | None]) -> str:
    """Pick an implementation of ``op``.

    ``obstacles`` lists the implementations best first, each with the reason why it cannot run
    here, or None if it can. Says once per outcome in the log what was picked and why.

    Raises:
        UserError: if ``named`` cannot run; there is no silent fall-back.
    """
    if named is not None:
        obstacle = obstacles[named]
        if obstacle is not None:
            raise UserError(f"{op} implementation {named!r} cannot run here: {obstacle}")
        _announce(f"{op}: using {named} (as told)")
        return named
    picked = next(name for name, obstacle in obstacles.items() if obstacle is None)
    passed = "; ".join(f"{name}: {why}" for name, why in obstacles.items() if why is not None)
    _announce(f"{op}: using {picked}{f' (not {passed})' if passed else ''}")
    return picked


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Lists what `choose` picks inside the block, each outcome once, in place of the log."""
    lines: list[str] = []
    _recordings.append(lines)
    try:
        yield lines
    finally:
        _recordings.remove(lines)


_recordings: list[list[str]] = []


def _announce(line: str) -> None:
    for lines in _recordings:
        if line not in lines:
            lines.append(line)
    if not _recordings:
        _log_once(line)


@cache
def _log_once(line: str) -> None:
    log.info("%s", line)


def kernel_obstacle(values: jax.Array) -> str | None:
    """Why no kernel of ours, for whatever device, can run on such values; None if one can."""
    if values.dtype == jnp.float64:
        return "it computes in float32"
    if values.shape[1] == 1:
        return "a row of one token"
    if (devices := mesh_devices()) > 1:
        return f"the mesh has {devices} devices"
    return None


def mesh_devices() -> int:
    """Devices of the mesh in use; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def on_gpu() -> bool:
    """Whether the default device is a GPU."""
    return jax.default_backend() == "gpu"


def on_tpu() -> bool:
    """Whether the default device is a TPU."""
    return jax.default_backend() == "tpu"
