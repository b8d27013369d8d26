"""The selective scan of Mamba: decay, write and read-out all depend on the token."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hybrid_lm.kernels.diagonal_scan import reference, selective_gpu, selective_tpu, xla
from hybrid_lm.kernels.diagonal_scan.recurrence import Recurrence
from hybrid_lm.kernels.dispatch import choose, on_tpu


@dataclass(frozen=True)
class _Selective(Recurrence):
    a_EN: jax.Array

    def log_decay(self, step):
        return step[..., None] * self.a_EN.reshape(*[1] * (step.ndim - 1), *self.a_EN.shape)

    def write(self, x):
        return (x["step"] * x["u"])[..., None] * x["b"][..., None, :]

    def read(self, x, h):
        return jnp.sum(h * x["c"][..., None, :], axis=-1)


def selective_scan(
    u_BLE: jax.Array,
    step_BLE: jax.Array,
    a_EN: jax.Array,
    b_BLN: jax.Array,
    c_BLN: jax.Array,
    resets_BL: jax.Array | None = None,
    initial_state_BEN: jax.Array | None = None,
    *,
    step_bias_E: jax.Array | None = None,
    skip_E: jax.Array | None = None,
    gate_BLE: jax.Array | None = None,
    out_dtype: DTypeLike | None = None,
    chunk_size: int = 32,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``h_t = exp(d_t A) h_{t-1} + d_t B_t u_t``, ``y_t = (C_t . h_t + D u_t) silu(z_t)``.

    Per channel E. Algorithm 2 of Gu & Dao 2023 (arXiv 2312.00752) and what Mamba's layer does
    around it, in one pass over memory.

    Args:
        u_BLE: inputs; computed in float32 (float64 if given).
        step_BLE: step sizes d > 0; with ``step_bias_E``, d is softplus(step + bias).
        a_EN: A < 0.
        b_BLN, c_BLN: write and read-out vectors, shared by the channels.
        resets_BL: True where the state is cleared before the token.
        initial_state_BEN: state before the first token; None is zero.
        skip_E: D; None is zero.
        gate_BLE: z; None is no gate.
        out_dtype: of y; None is float32 (or float64).

    Returns:
        y_BLE and the state after the last token, float32 (or float64).
    """
    wide = jnp.promote_types(u_BLE.dtype, jnp.float32)
    if initial_state_BEN is None:
        initial_state_BEN = jnp.zeros((u_BLE.shape[0], *a_EN.shape), wide)
    pallas = selective_tpu if on_tpu() else selective_gpu
    obstacles = {"pallas": pallas.obstacle(u_BLE, a_EN), "xla": None, "reference": None}
    chosen = choose("selective_scan", implementation, obstacles)
    if chosen == "pallas" and pallas is selective_gpu:
        return selective_gpu.selective_scan(
            u_BLE,
            step_BLE,
            a_EN,
            b_BLN,
            c_BLN,
            resets_BL,
            initial_state_BEN,
            step_bias_E=step_bias_E,
            skip_E=skip_E,
            gate_BLE=gate_BLE,
            out_dtype=out_dtype,
        )
    if step_bias_E is not None:
        step_BLE = jax.nn.softplus(step_BLE.astype(wide) + step_bias_E)
    if chosen == "pallas":
        y_BLE, h_BEN = selective_tpu.selective_scan(
            u_BLE, step_BLE, a_EN, b_BLN, c_BLN, resets_BL, initial_state_BEN
        )
    else:
        x = {"u": u_BLE, "step": step_BLE, "b": b_BLN, "c": c_BLN}
        x = {name: value.astype(wide) for name, value in x.items()}
        scan = partial(xla.scan, chunk_size=chunk_size) if chosen == "xla" else reference.scan
        y_BLE, h_BEN = scan(_Selective(a_EN.astype(wide)), x, resets_BL, initial_state_BEN)
    if skip_E is not None:
        y_BLE += skip_E * u_BLE
    if gate_BLE is not None:
        y_BLE *= jax.nn.silu(gate_BLE.astype(wide))
    return y_BLE.astype(out_dtype or wide), h_BEN
