"""Eight CPU devices in every test process, so that sharding is tested without accelerators."""

import os

# Tests compile for longer than they compute: generate code in one piece, barely optimised.
_FAST_COMPILE = "--xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FAST_COMPILE}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def float64():
    """Arithmetic in float64, for what is algebra: there, rounding hides nothing."""
    with jax.enable_x64(True):
        yield
