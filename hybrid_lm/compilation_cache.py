"""Compiled programs kept on disk, so that a second start does not compile again."""

import jax

from hybrid_lm import user_cache


def enable() -> None:
    """Use JAX_COMPILATION_CACHE_DIR if it is set, else the user's cache directory."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache.directory("xla")))
