"""The noise floor: on i.i.d. uniform symbols no causal model can do better than ln V."""

import jax
import numpy as np
import optax

from hybrid_lm.loss import token_nll
from hybrid_lm.mixers import Context, MixerConfig
from hybrid_lm.model import Model, ModelConfig

SYMBOLS = 16
WIDTH = 16


def trained_losses(
    config: MixerConfig, *, length: int, batch: int = 8, steps: int = 200, measured: int = 100
) -> np.ndarray:
    """Losses in nats of the single tokens in the last ``measured`` steps of training one layer.

    Every step draws new rows of ``length`` inputs from `SYMBOLS` symbols. Nothing that a token may
    see tells anything of the next one: a mean below ln `SYMBOLS` by more than chance is a leak.
    """
    model = Model(ModelConfig("m", {"m": config}, width=WIDTH, mlp_width=0), SYMBOLS)
    ctx = Context.of_documents(batch, length)
    optimizer = optax.adam(1e-2)

    def loss(params, tokens_BL):
        x_BLD = model.apply(params, tokens_BL[:, :-1], ctx).exits[-1]
        readout_BLD = model.readout(params, x_BLD)
        nll_BL = token_nll(readout_BLD, params["embedding"], tokens_BL[:, 1:])
        return nll_BL.mean(), nll_BL

    def train(key):
        params = model.init(key)

        def step(carry, key):
            params, moments = carry
            tokens_BL = jax.random.randint(key, (batch, length + 1), 0, SYMBOLS)
            gradients, nll_BL = jax.grad(loss, has_aux=True)(params, tokens_BL)
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, updates), moments), nll_BL

        keys = jax.random.split(key, steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    # Such a program takes far longer to compile than to run.
    options = {"xla_backend_optimization_level": 0}
    nll_SBL = jax.jit(train, compiler_options=options)(jax.random.key(0))
    return np.asarray(nll_SBL)[-measured:].ravel()
