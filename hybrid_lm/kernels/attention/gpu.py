"""Causal attention inside documents as Pallas kernels for Hopper (H100, H200)."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.attention.gpu_backward import backward
from hybrid_lm.kernels.attention.gpu_forward import forward
from hybrid_lm.kernels.dispatch import mesh_devices, on_gpu
from hybrid_lm.kernels.remat import keep

_DIM = 64
_BLOCK = 128  # queries and keys come in blocks
_LEAST = 2048  # tokens of a row: in shorter ones both passes together gain a tenth or less


def obstacle(q_BLHK, k_BSGK, v_BSGP, ends_BL, window) -> str | None:
    """Why these kernels cannot run on these operands; None if they can."""
    if not on_gpu() or jax.devices()[0].compute_capability != "9.0":
        return "the device is not a Hopper GPU"
    if q_BLHK.dtype != jnp.bfloat16:
        return f"it takes bf16, not {q_BLHK.dtype}"
    if ends_BL is not None or window is not None:
        return "it takes causal attention without a window"
    if not q_BLHK.shape == k_BSGK.shape == v_BSGP.shape:
        return "keys, values and queries differ in number, heads or dimension"
    if q_BLHK.shape[3] != _DIM:
        return f"heads have {q_BLHK.shape[3]} dimensions, not {_DIM}"
    if q_BLHK.shape[1] % _BLOCK or q_BLHK.shape[1] < _LEAST:
        return f"rows are not of {_LEAST} tokens or more, a multiple of {_BLOCK}"
    if (devices := mesh_devices()) > 1:
        return f"the mesh has {devices} devices"
    return None


@jax.custom_vjp
def attention(
    q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, starts_BL: jax.Array | None
) -> jax.Array:
    """Causal attention -> y_BLHK, scores scaled by 1/sqrt(K).

    ``starts_BL``: int32, where the document of each token starts; None: rows of one document.
    """
    return forward(q_BLHK, k_BLHK, v_BLHK, starts_BL)[0]


def _forward(q_BLHK, k_BLHK, v_BLHK, starts_BL):
    y_BLHK, log_mass_BHL = (keep(x) for x in forward(q_BLHK, k_BLHK, v_BLHK, starts_BL))
    return y_BLHK, (q_BLHK, k_BLHK, v_BLHK, y_BLHK, log_mass_BHL, starts_BL)


def _backward(saved, dy_BLHK):
    q_BLHK, k_BLHK, v_BLHK, y_BLHK, log_mass_BHL, starts_BL = saved
    low = y_BLHK, dy_BLHK
    offset_BHL = jnp.einsum("blhk,blhk->bhl", *low, preferred_element_type=jnp.float32)
    operands = q_BLHK, k_BLHK, v_BLHK, dy_BLHK, log_mass_BHL, offset_BHL
    return *backward(*operands, starts_BL), None


attention.defvjp(_forward, _backward)
