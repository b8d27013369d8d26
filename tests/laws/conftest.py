"""Arithmetic in float64 for the laws that are algebra: there, rounding hides nothing."""

import jax
import pytest


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield
