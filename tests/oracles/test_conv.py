"""`conv` against `transformers`' LFM2 short convolution, values and gradients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import Conv
from tests.laws.cases import module, parameters, single_context
from tests.numerics import assert_close, jit

ORACLE = np.load(Path(__file__).with_name("conv.npz"))


def ours(prefix: str) -> dict[str, np.ndarray]:
    """The oracle's parameters, or with prefix "d" their gradients, under our names and shapes."""
    width = ORACLE["x"].shape[-1]
    return {
        "inputs": ORACLE[f"{prefix}in_proj.weight"].reshape(3, width, width).transpose(2, 0, 1),
        "conv": ORACLE[f"{prefix}conv.weight"][:, 0].T,
        "out": ORACLE[f"{prefix}out_proj.weight"].T,
    }


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_lfm2():
    batch, length, width = ORACLE["x"].shape
    params = parameters(Conv(), width)
    for name, value in ours("").items():
        params[name].set_value(jnp.asarray(value))

    @jit
    def run(params, x_BLD):
        def loss(params, x_BLD):
            y_BLD, _ = module(Conv(), params, width)(x_BLD, single_context(batch, length))
            return jnp.sum(y_BLD * ORACLE["weight"]), y_BLD

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_BLD)

    (dparams, dx_BLD), y_BLD = run(params, jnp.asarray(ORACLE["x"]))
    dparams = {name: dparams[name][...] for name in ours("")}
    # Both compute in float64; what is left is rounding.
    truth = (ORACLE["y"], ORACLE["dx"], ours("d"))
    assert_close((y_BLD, dx_BLD, dparams), truth, 1e-12)
