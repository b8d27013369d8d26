"""Token embedding whose gradient is a matrix product, not a scatter.

A scatter-add serialises where many tokens share a row, as the bytes of real text do (on an H100 it
took a fifth of a step), adds in the dtype of the activations, and in no fixed order.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_CHUNK = 1024  # positions whose one-hot rows exist at a time


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed(table_VD: jax.Array, tokens_BL: jax.Array, dtype: DTypeLike) -> jax.Array:
    """``x_bl = table[tokens_bl]`` -> x_BLD in ``dtype``.

    Its gradient ``dtable_v = sum_bl [tokens_bl = v] dx_bl`` is summed in the dtype of the table.
    """
    return table_VD.astype(dtype)[tokens_BL]


def _forward(table_VD, tokens_BL, dtype):
    return embed(table_VD, tokens_BL, dtype), (table_VD, tokens_BL)


def _backward(dtype, saved, dx_BLD):
    table_VD, tokens_BL = saved
    length = tokens_BL.shape[1]
    size = min(_CHUNK, length)

    def chunk(sum_VD, start):
        dx_BCD = jax.lax.dynamic_slice_in_dim(dx_BLD, start, size, axis=1)
        tokens_BC = jax.lax.dynamic_slice_in_dim(tokens_BL, start, size, axis=1)
        one_hot_BCV = jax.nn.one_hot(tokens_BC, table_VD.shape[0], dtype=dx_BCD.dtype)
        part_VD = jnp.einsum(
            "bcv,bcd->vd",
            one_hot_BCV,
            dx_BCD,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=sum_VD.dtype,
        )
        return sum_VD + part_VD, None

    padding = -length % size
    tokens_BL = jnp.pad(tokens_BL, ((0, 0), (0, padding)))
    dx_BLD = jnp.pad(dx_BLD, ((0, 0), (0, padding), (0, 0)))
    starts = jnp.arange(0, length, size)
    return jax.lax.scan(chunk, jnp.zeros_like(table_VD), starts)[0], None


embed.defvjp(_forward, _backward)
