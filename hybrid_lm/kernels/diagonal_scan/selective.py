"""The selective scan of Mamba: decay, write and read-out all depend on the token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

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
    chunk_size: int = 32,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``h_t = exp(step_t A) h_{t-1} + step_t B_t u_t``, ``y_t = C_t . h_t``, per channel E.

    Algorithm 2 of Gu & Dao 2023 (arXiv 2312.00752), without the skip D and the gate.

    Args:
        u_BLE: inputs; computed in float32 (float64 if given).
        step_BLE: step sizes > 0 (after softplus).
        a_EN: A < 0.
        b_BLN, c_BLN: write and read-out vectors, shared by the channels.
        resets_BL: True where the state is cleared before the token.
        initial_state_BEN: state before the first token; None is zero.

    Returns:
        y_BLE and the state after the last token, float32 (or float64).
    """
    wide = jnp.promote_types(u_BLE.dtype, jnp.float32)
    if initial_state_BEN is None:
        initial_state_BEN = jnp.zeros((u_BLE.shape[0], *a_EN.shape), wide)
    pallas = selective_tpu if on_tpu() else selective_gpu
    obstacles = {"pallas": pallas.obstacle(u_BLE, a_EN), "xla": None, "reference": None}
    chosen = choose("selective_scan", implementation, obstacles)
    if chosen == "pallas":
        return pallas.selective_scan(
            u_BLE, step_BLE, a_EN, b_BLN, c_BLN, resets_BL, initial_state_BEN
        )
    x = {"u": u_BLE, "step": step_BLE, "b": b_BLN, "c": c_BLN}
    x = {name: value.astype(wide) for name, value in x.items()}
    recurrence = _Selective(a_EN.astype(wide))
    if chosen == "reference":
        return reference.scan(recurrence, x, resets_BL, initial_state_BEN)
    return xla.scan(recurrence, x, resets_BL, initial_state_BEN, chunk_size=chunk_size)
