"""`linformer` with causal=False against the `linformer` package, values and gradients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import Linformer
from tests.laws.cases import module, parameters, single_context
from tests.numerics import assert_close, jit

ORACLE = np.load(Path(__file__).with_name("linformer.npz"))
HEADS = 2
LONGEST, SLOTS = ORACLE["proj_k"].shape
CONFIG = Linformer(heads=HEADS, block_size=LONGEST, slots=SLOTS, causal=False)


def ours(prefix: str) -> dict[str, np.ndarray]:
    """The oracle's parameters, or with prefix "d" their gradients, under our names and shapes.

    E and F lack our dimension of heads: the package shares them.
    """
    width = ORACLE["x"].shape[-1]
    by_head = {
        name: ORACLE[f"{prefix}to_{name}.weight"].T.reshape(width, HEADS, -1) for name in "qkv"
    }
    both = [ORACLE[f"{prefix}proj_{name}"] for name in "kv"]
    out = ORACLE[f"{prefix}to_out.weight"].T.reshape(HEADS, -1, width)
    return by_head | {"out": out, "projections": np.stack(both, axis=1)}


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_the_package():
    batch, length, width = ORACLE["x"].shape
    params = parameters(CONFIG, width)
    for name, value in ours("").items():
        if name == "projections":
            value = np.repeat(value[:, :, None], HEADS, axis=2)
        params[name].set_value(jnp.asarray(value))

    @jit
    def run(params, x_BLD):
        def loss(params, x_BLD):
            y_BLD, _ = module(CONFIG, params, width)(x_BLD, single_context(batch, length))
            return jnp.sum(y_BLD * ORACLE["weight"]), y_BLD

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_BLD)

    (dparams, dx_BLD), y_BLD = run(params, jnp.asarray(ORACLE["x"]))
    dparams = {name: dparams[name][...] for name in ours("")}
    dparams["projections"] = dparams["projections"].sum(axis=2)
    # Both compute in float64; what is left is rounding.
    truth = (ORACLE["y"], ORACLE["dx"], ours("d"))
    assert_close((y_BLD, dx_BLD, dparams), truth, 1e-12)
