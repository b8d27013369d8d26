"""Token embedding whose gradient is no scatter."""

from functools import partial

import jax
from jax.typing import DTypeLike

from hybrid_lm.kernels.token_sums import token_sums


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def embed(
    table_VD: jax.Array,
    tokens_BL: jax.Array,
    dtype: DTypeLike,
    implementation: str | None = None,
) -> jax.Array:
    """``x_bl = table[tokens_bl]`` -> x_BLD in ``dtype``.

    Its gradient is found by `token_sums`, with the ``implementation``.
    """
    del implementation
    return table_VD.astype(dtype)[tokens_BL]


def _forward(table_VD, tokens_BL, dtype, implementation):
    return embed(table_VD, tokens_BL, dtype, implementation), (table_VD, tokens_BL)


def _backward(dtype, implementation, saved, dx_BLD):
    del dtype
    table_VD, tokens_BL = saved
    sums_VD = token_sums(dx_BLD, tokens_BL, table_VD.shape[0], implementation=implementation)
    return sums_VD.astype(table_VD.dtype), None


embed.defvjp(_forward, _backward)
