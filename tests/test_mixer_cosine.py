"""Cosine attention against its formulas, written down over all pairs of tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import Context, Cosine
from tests.laws.cases import parameters, random_x, run, single_context
from tests.numerics import assert_close, jit, weighted_sum

pytestmark = pytest.mark.thorough

BATCH, LENGTH = 2, 13
COTTENTION = Cosine(heads=4, chunk_size=4)
FORMS = {
    "causal": COTTENTION,
    "both ways": dataclasses.replace(COTTENTION, causal=False),
    # Shorter than the row: the last tokens count as the ninth.
    "reweight": Cosine(heads=4, chunk_size=4, reweight=True, max_length=8),
}


def by_pairs(config: Cosine, params, x_BLD: jax.Array) -> jax.Array:
    """The mixer's outputs from the weight of every pair."""
    q, k, v = (jnp.einsum("bld,dhk->bhlk", x_BLD, params[n][...]) for n in "qkv")
    place_L = jnp.arange(LENGTH)
    if config.reweight:
        place_L = jnp.minimum(place_L, config.max_length)
        distance_LL = place_L[:, None] - place_L[None, :]
        weights = jnp.einsum("bhik,bhjk->bhij", jax.nn.relu(q), jax.nn.relu(k))
        weights *= jnp.cos(jnp.pi / 2 * distance_LL / config.max_length)
        weights = jnp.tril(weights)
        weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)
    else:
        # The addition keeps the gradient of a query or key of 0 finite.
        q, k = (a / jnp.sqrt(jnp.sum(a**2, axis=-1, keepdims=True) + 1e-6) for a in (q, k))
        weights = jnp.einsum("bhik,bhjk->bhij", q, k)
        count_L = place_L + 1 if config.causal else jnp.full(LENGTH, LENGTH)
        exponent_H = jax.nn.sigmoid(params["exponent"][...])
        weights /= (count_L[None, :] ** exponent_H[:, None])[:, None, :]
        weights = jnp.tril(weights) if config.causal else weights
    return jnp.einsum("bhij,bhjp,hpd->bid", weights, v, params["out"][...])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_formula(form: str):
    config, rng = FORMS[form], np.random.default_rng(0)
    params, x_BLD = parameters(config), random_x(rng, BATCH, LENGTH)
    weights = [rng.normal(size=x_BLD.shape)]
    ctx = single_context(BATCH, LENGTH)

    @jit
    def both(params, x_BLD):
        def of(outputs):
            def loss(params, x_BLD):
                y_BLD = outputs(params, x_BLD)
                return weighted_sum(y_BLD, weights), y_BLD

            return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_BLD)

        mixer = of(lambda params, x_BLD: run(config, params, x_BLD, ctx)[0])
        return mixer, of(lambda params, x_BLD: by_pairs(config, params, x_BLD))

    ours, formula = both(params, x_BLD)
    assert_close(ours, formula, 1e-9)


@pytest.mark.usefixtures("float64")
def test_lengths_of_packed_documents_are_their_own():
    config = FORMS["both ways"]
    params, x_BLD = parameters(config), random_x(np.random.default_rng(0), 1, 7)
    place_L, ids_L = [0, 1, 2, 0, 1, 0, 1], [4, 4, 4, 2, 2, 4, 4]
    packed = Context(jnp.asarray([place_L]), jnp.asarray([ids_L]), dtype=jnp.float64)

    @jit
    def together_and_apart(x_BLD):
        together, _ = run(config, params, x_BLD, packed)
        spans = [(0, 3), (3, 5), (5, 7)]
        apart = [run(config, params, x_BLD[:, i:j], single_context(1, j - i))[0] for i, j in spans]
        return together, jnp.concatenate(apart, axis=1)

    together, apart = together_and_apart(x_BLD)
    assert_close(together, apart, 1e-12)
