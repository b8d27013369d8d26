"""Compiled programs kept on disk, so that a second start does not compile again."""

import os
from pathlib import Path

import jax


def enable() -> None:
    """Use JAX_COMPILATION_CACHE_DIR if it is set, else the user's cache directory."""
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home, "hybrid_lm", "xla")))
