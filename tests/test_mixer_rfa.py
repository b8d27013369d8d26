"""Random feature attention against its formulas, and its features against the Gaussian kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.mixers import RFA
from hybrid_lm.mixers.rfa import frequencies
from tests.laws.cases import WIDTH, parameters, random_x, run, single_context
from tests.numerics import assert_close, jit, weighted_sum

pytestmark = pytest.mark.thorough

BATCH, LENGTH, HEADS, FEATURES = 2, 13, 4, 6


def step_by_step(config: RFA, params, x_BLD: jax.Array) -> jax.Array:
    """The recurrences of the paper as they stand."""
    w_HNK = params["sigma"][...][:, None] * frequencies(HEADS, FEATURES, WIDTH // HEADS, 0)

    def features(x_BHK):
        # The addition keeps the gradient of a query or key of 0 finite.
        unit_BHK = x_BHK / jnp.sqrt(jnp.sum(x_BHK**2, axis=-1, keepdims=True) + 1e-6)
        angle_BHN = jnp.einsum("bhk,hnk->bhn", unit_BHK, w_HNK)
        return jnp.concatenate([jnp.sin(angle_BHN), jnp.cos(angle_BHN)], -1) * FEATURES**-0.5

    def step(carry, x_BD):
        s_BHNP, z_BHN = carry
        q, k, v = (jnp.einsum("bd,dhk->bhk", x_BD, params[n][...]) for n in "qkv")
        f_q, f_k = features(q), features(k)
        keep_BH, write_BH = jnp.ones(q.shape[:2]), jnp.ones(q.shape[:2])
        if config.gate:
            keep_BH = jax.nn.sigmoid(x_BD @ params["gate"][...] + params["gate_bias"][...][None])
            write_BH = 1 - keep_BH
        s_BHNP = keep_BH[..., None, None] * s_BHNP
        s_BHNP += write_BH[..., None, None] * f_k[..., None] * v[:, :, None]
        z_BHN = keep_BH[..., None] * z_BHN + write_BH[..., None] * f_k
        normaliser_BH = jnp.maximum(jnp.einsum("bhn,bhn->bh", f_q, z_BHN), 0.1)
        y_BHP = jnp.einsum("bhn,bhnp->bhp", f_q, s_BHNP) / normaliser_BH[..., None]
        return (s_BHNP, z_BHN), jnp.einsum("bhp,hpd->bd", y_BHP, params["out"][...])

    nothing = jnp.zeros((BATCH, HEADS, 2 * FEATURES, WIDTH // HEADS))
    _, y_LBD = jax.lax.scan(step, (nothing, nothing[..., 0]), jnp.moveaxis(x_BLD, 1, 0))
    return jnp.moveaxis(y_LBD, 0, 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("gate", [False, True], ids=["sum", "gate"])
def test_values_and_gradients_are_those_of_the_formula(gate: bool):
    config = RFA(heads=HEADS, features=FEATURES, gate=gate, chunk_size=4)
    rng = np.random.default_rng(0)
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
        return mixer, of(lambda params, x_BLD: step_by_step(config, params, x_BLD))

    ours, formula = both(params, x_BLD)
    assert_close(ours, formula, 1e-9)


def test_features_estimate_the_gaussian_kernel_without_bias():
    dim, features, draws = 6, 16, 500
    rng = np.random.default_rng(0)
    q_K, k_K = (a / np.linalg.norm(a) for a in rng.normal(size=(2, dim)))
    w_nNK = np.float64([frequencies(1, features, dim, seed)[0] for seed in range(draws)])
    # sin sin + cos cos of two angles is the cosine of their difference.
    estimates = np.cos(w_nNK @ (q_K - k_K)).mean(axis=1)
    standard_error = estimates.std(ddof=1) / np.sqrt(draws)
    truth = np.exp(-np.sum((q_K - k_K) ** 2) / 2)
    assert abs(estimates.mean() - truth) < 4 * standard_error
    assert standard_error < 0.05 * truth
