"""Eight CPU devices in every test process, so that sharding is tested without accelerators."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def float64():
    """Arithmetic in float64, for what is algebra: there, rounding hides nothing."""
    with jax.enable_x64(True):
        yield
