"""A mixer or an operation beside a frozen oracle."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybrid_lm.mixers import MixerConfig
from tests.laws.cases import module, parameters, single_context
from tests.numerics import assert_close, jit

# Most oracles compute in float32, the tests in float64: what is left is the oracles' rounding, most
# of it in gradients that sum over all tokens.
TOLERANCE = 1e-5


def load(key: str, form: str = "") -> dict[str, np.ndarray]:
    """The arrays of a fixture (those under ``form/`` if it has several forms), in float64."""
    prefix = f"{form}/" if form else ""
    with np.load(Path(__file__).with_name(f"{key}.npz")) as fixture:
        names = [name for name in fixture if name.startswith(prefix) and name != "versions"]
        return {name.removeprefix(prefix): fixture[name].astype(np.float64) for name in names}


def mixer_matches(
    config: MixerConfig,
    given: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    ours: Callable[[Mapping[str, np.ndarray]], dict[str, Any]],
    *,
    unshared: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    tolerance: float = TOLERANCE,
) -> None:
    """y and all gradients of a mixer are the oracle's.

    Args:
        given: x, the weight of y in the loss, and the parameters under the oracle's names.
        found: y, dx, and the parameters' gradients under "d" + name.
        ours: the parameters, or their gradients, under our names and shapes.
        unshared: all of our parameters from those, where the oracle shares some that we do not.
        tolerance: of the relative RMSE; less where the oracle computes in float64, too.
    """
    batch, length, width = given["x"].shape

    @jit
    def run(shared, x_BLD):
        def loss(shared, x_BLD):
            params, given_params = parameters(config, width), unshared(shared)
            assert jax.tree.structure(given_params) == jax.tree.structure(nnx.to_pure_dict(params))
            nnx.replace_by_pure_dict(params, given_params)
            y_BLD, _ = module(config, params, width)(x_BLD, single_context(batch, length))
            return jnp.sum(y_BLD * given["weight"]), y_BLD

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(shared, x_BLD)

    (dshared, dx_BLD), y_BLD = run(jax.tree.map(jnp.asarray, ours(given)), given["x"])
    gradients = {name[1:]: array for name, array in found.items() if name.startswith("d")}
    truth = (found["y"], found["dx"], ours(gradients))
    assert_close((y_BLD, dx_BLD, dshared), truth, tolerance)


def operation_matches(
    operation: Callable[..., tuple[jax.Array, jax.Array]],
    oracle: Mapping[str, np.ndarray],
    names: list[str],
) -> None:
    """y, the final state and all gradients of an operation on ``names`` are the oracle's."""

    @jit
    def run(operands):
        def loss(operands):
            y, final = operation(**operands)
            weighted = jnp.sum(y * oracle["weight_y"]) + jnp.sum(final * oracle["weight_final"])
            return weighted, (y, final)

        return jax.grad(loss, has_aux=True)(operands)

    gradients, values = run({name: oracle[name] for name in names})
    truth = (oracle["y"], oracle["final"]), {name: oracle[f"d{name}"] for name in names}
    assert_close((values, gradients), truth, TOLERANCE)
