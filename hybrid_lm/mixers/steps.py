"""Step sizes (delta) of the state-space mixers: how they start out."""

import jax
import jax.numpy as jnp

STEP_MIN, STEP_MAX = 1e-3, 1e-1


def log_uniform_steps(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Step sizes, log-uniform in [0.001, 0.1] (Gu et al. 2022, arXiv 2111.00396, section 4)."""
    log_range = jnp.log(STEP_MIN), jnp.log(STEP_MAX)
    return jnp.exp(jax.random.uniform(key, shape, jnp.float32, *log_range))


def step_bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Bias b with softplus(b) log-uniform in [0.001, 0.1] (arXiv 2312.00752, section 3.6)."""
    steps = log_uniform_steps(key, shape)
    return (steps + jnp.log(-jnp.expm1(-steps))).astype(dtype)
