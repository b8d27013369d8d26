"""Gate and up as one product, with one pass over memory forward and one backward: Pallas kernels
(Triton backend).

XLA would write the cotangents of gate and up side by side in more passes than one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.precision import project

_TOKENS = 32  # of a program
_CHANNELS = 128  # of a program
_WARPS = 4


def _gate_and_up(both):
    """Where the program's tile is, gate, sigmoid(gate) and up there, and where up is."""
    tokens = pl.ds(pl.program_id(1) * _TOKENS, _TOKENS)
    first = pl.program_id(0) * _CHANNELS
    own, behind = pl.ds(first, _CHANNELS), pl.ds(both.shape[1] // 2 + first, _CHANNELS)
    gate_TM, up_TM = (both[tokens, at].astype(jnp.float32) for at in (own, behind))
    return (tokens, own), gate_TM, 1 / (1 + jnp.exp(-gate_TM)), up_TM, (tokens, behind)


def _forward_kernel(both, hidden):
    at, gate_TM, sigmoid_TM, up_TM, _ = _gate_and_up(both)
    hidden[at] = (gate_TM * sigmoid_TM * up_TM).astype(hidden.dtype)


def _backward_kernel(both, dhidden, dboth, *hidden):
    """Also writes the hidden layer, where there is a place for it."""
    at, gate_TM, sigmoid_TM, up_TM, at_up = _gate_and_up(both)
    silu_TM, dhidden_TM = gate_TM * sigmoid_TM, dhidden[at].astype(jnp.float32)
    dgate_TM = dhidden_TM * up_TM * (sigmoid_TM + silu_TM * (1 - sigmoid_TM))
    dboth[at] = dgate_TM.astype(dboth.dtype)
    dboth[at_up] = (dhidden_TM * silu_TM).astype(dboth.dtype)
    for again in hidden:
        again[at] = (silu_TM * up_TM).astype(again.dtype)


def _call(kernel, outputs, both_TF, *operands, interpret):
    tokens, double = both_TF.shape
    grid = (double // 2 // _CHANNELS, tokens // _TOKENS)
    return pallas_triton.call(
        kernel, grid, outputs, both_TF, *operands, warps=_WARPS, interpret=interpret
    )


def _hidden(both_TF, interpret) -> jax.Array:
    tokens, double = both_TF.shape
    hidden = jax.ShapeDtypeStruct((tokens, double // 2), both_TF.dtype)
    return _call(_forward_kernel, hidden, both_TF, interpret=interpret)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _down(both_TF, down_MD, recomputes, interpret):
    """Gate and up, side by side, to the MLP's output."""
    del recomputes
    return project("tm,md->td", _hidden(both_TF, interpret), down_MD)


def _forward(both_TF, down_MD, recomputes, interpret):
    hidden_TM = _hidden(both_TF, interpret)
    kept = (both_TF, down_MD, None if recomputes else hidden_TM)
    return project("tm,md->td", hidden_TM, down_MD), kept


def _backward(recomputes, interpret, kept, dout_TD):
    both_TF, down_MD, hidden_TM = kept
    dhidden_TM = project("td,md->tm", dout_TD, down_MD)
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (both_TF, dhidden_TM)]
    outputs = like if recomputes else like[:1]
    dboth_TF, *again = _call(_backward_kernel, outputs, both_TF, dhidden_TM, interpret=interpret)
    if recomputes:
        (hidden_TM,) = again
    return dboth_TF, project("tm,td->md", hidden_TM, dout_TD).astype(down_MD.dtype)


_down.defvjp(_forward, _backward)


def obstacle(x_BLD: jax.Array, gate_DM: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    if gate_DM.shape[1] % _CHANNELS:
        return f"hidden channels must be a multiple of {_CHANNELS}"
    if x_BLD.shape[0] * x_BLD.shape[1] % _TOKENS:
        return f"tokens must be a multiple of {_TOKENS}"
    return pallas_triton.obstacle(x_BLD)


def gated_mlp(
    x_BLD, gate_DM, up_DM, down_MD, recomputes: bool = False, *, interpret: bool = False
) -> jax.Array:
    """See `hybrid_lm.kernels.gated_mlp.gated_mlp`."""
    both_DF = jnp.concatenate([gate_DM, up_DM], axis=1)
    both_BLF = project("bld,df->blf", x_BLD, both_DF)
    both_TF = both_BLF.reshape(-1, both_BLF.shape[-1])
    out_TD: Any = _down(both_TF, down_MD, recomputes, interpret)
    return out_TD.reshape(x_BLD.shape)
