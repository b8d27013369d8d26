"""Noise floor: trained on i.i.d. uniform symbols, the loss never goes below ln V - 3 standard
errors, for nothing seen so far tells anything about the next symbol.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybrid_lm.loss import token_nll
from hybrid_lm.mixers import Context, Linear, MixerConfig
from hybrid_lm.mixers.linear import LinearMixer
from hybrid_lm.model import Model, ModelConfig
from tests.laws.cases import TINY, WIDTH, Case, defaults
from tests.numerics import jit

SIZES = TINY | {"chunk_size": 8}
SYMBOLS = 16
BATCH, LENGTH, STEPS, MEASURED = 8, 24, 200, 100


def trained_losses(config: MixerConfig) -> np.ndarray:
    """Losses of the single tokens in the last ``MEASURED`` steps; every step draws new symbols."""
    model = Model(ModelConfig("m", {"m": config}, width=WIDTH, mlp_width=0), SYMBOLS)
    ctx = Context.of_documents(BATCH, LENGTH - 1)
    optimizer = optax.adam(1e-2)

    def loss(params, tokens_BL):
        x_BLD = model.apply(params, tokens_BL[:, :-1], ctx).exits[-1]
        readout_BLD = model.readout(params, x_BLD)
        nll_BL = token_nll(readout_BLD, params["embedding"], tokens_BL[:, 1:])
        return nll_BL.mean(), nll_BL

    @jit
    def train(key):
        params = model.init(key)

        def step(carry, key):
            params, moments = carry
            tokens_BL = jax.random.randint(key, (BATCH, LENGTH), 0, SYMBOLS)
            gradients, nll_BL = jax.grad(loss, has_aux=True)(params, tokens_BL)
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, updates), moments), nll_BL

        keys = jax.random.split(key, STEPS)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    return np.asarray(train(jax.random.key(0)))[-MEASURED:].ravel()


def goes_below_the_floor(losses: np.ndarray) -> bool:
    standard_error = losses.std(ddof=1) / math.sqrt(losses.size)
    return losses.mean() < math.log(SYMBOLS) - 3 * standard_error


@pytest.mark.slow
@pytest.mark.parametrize("case", defaults(**SIZES), ids=str)
def test_noise_is_not_predicted(case: Case):
    losses = trained_losses(case.config)
    assert losses.mean() < 1.1 * math.log(SYMBOLS), "training diverged and shows nothing"
    assert not goes_below_the_floor(losses)


@dataclass(frozen=True)
class Leaking(Linear):
    """Linear attention in which every token sees the whole row: its normaliser and its sum."""

    def build(self, width, rngs):
        return LeakingMixer(self, width, rngs)


class LeakingMixer(LinearMixer):
    def __call__(self, x_BLD, ctx, state=None):
        y_BLD, state = super().__call__(x_BLD, ctx, state)
        backwards_BLD, _ = super().__call__(jnp.flip(x_BLD, axis=1), ctx, None)
        return y_BLD + jnp.flip(backwards_BLD, axis=1), state


@pytest.mark.slow
def test_a_mixer_that_leaks_is_found_out():
    assert goes_below_the_floor(trained_losses(Leaking(heads=SIZES["heads"])))
