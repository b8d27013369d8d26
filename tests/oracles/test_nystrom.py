"""`nystrom` with causal=False against the `nystrom-attention` package, values and gradients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import Nystrom
from tests.laws.cases import module, parameters, single_context
from tests.numerics import assert_close, jit

ORACLE = np.load(Path(__file__).with_name("nystrom.npz"))
CONFIG = Nystrom(heads=1, landmarks=5, causal=False)


def ours(prefix: str) -> dict[str, np.ndarray]:
    """The oracle's parameters, or with prefix "d" their gradients, under our names and shapes."""
    qkv = np.split(ORACLE[f"{prefix}to_qkv.weight"], 3)
    by_name = {name: weight.T[:, None] for name, weight in zip("qkv", qkv, strict=True)}
    return by_name | {"out": ORACLE[f"{prefix}to_out.0.weight"].T[None]}


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_those_of_the_package():
    batch, length, width = ORACLE["x"].shape
    params = parameters(CONFIG, width)
    for name, value in ours("").items():
        params[name].set_value(jnp.asarray(value))

    @jit
    def run(params, x_BLD):
        def loss(params, x_BLD):
            y_BLD, _ = module(CONFIG, params, width)(x_BLD, single_context(batch, length))
            return jnp.sum(y_BLD * ORACLE["weight"]), y_BLD

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_BLD)

    (dparams, dx_BLD), y_BLD = run(params, jnp.asarray(ORACLE["x"]))
    dparams = {name: dparams[name][...] for name in ours("")}
    # Both compute in float64; what is left is rounding that the inverse magnifies.
    truth = (ORACLE["y"], ORACLE["dx"], ours("d"))
    assert_close((y_BLD, dx_BLD, dparams), truth, 1e-10)
