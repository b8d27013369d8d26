"""Runs a kernelized mixer with the parameters of an oracle's fixture."""

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_lm.mixers import MixerConfig
from tests.laws.cases import module, parameters, single_context
from tests.numerics import assert_close, jit


def assert_matches(config: MixerConfig, oracle: dict[str, np.ndarray], tolerance: float) -> None:
    """Values and all gradients of one layer are those of the oracle.

    ``oracle`` holds ``x``, ``weight`` (of the outputs in the loss), ``y``, the parameters under
    our names, and a gradient ``dNAME`` for ``x`` and each parameter.
    """
    batch, length, width = oracle["x"].shape
    params = parameters(config, width)
    for name, parameter in params.items():
        assert parameter.shape == oracle[name].shape
        parameter.set_value(jnp.asarray(oracle[name], jnp.result_type(float)))

    @jit
    def run(params, x_BLD):
        def loss(params, x_BLD):
            y_BLD, _ = module(config, params, width)(x_BLD, single_context(batch, length))
            return jnp.sum(y_BLD * oracle["weight"]), y_BLD

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_BLD)

    (dparams, dx_BLD), y_BLD = run(params, jnp.asarray(oracle["x"], jnp.result_type(float)))
    ours = {f"d{name}": dparams[name][...] for name in params}
    ours |= {"dx": dx_BLD, "y": y_BLD}
    assert_close(ours, {name: oracle[name] for name in ours}, tolerance)


def fixture(path, form: str) -> dict[str, np.ndarray]:
    """The arrays under ``form/`` in an npz file."""
    arrays = np.load(path)
    prefix = f"{form}/"
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
