"""Any length: rows of 1, 2, 63, 65, 127 and 1000 tokens are the start of a longer row."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import (
    Case,
    defaults,
    packed_context,
    parameters,
    random_x,
    run,
    single_context,
)
from tests.numerics import jit, relative_rmse

LENGTHS = (1, 2, 63, 65, 127)
LONGEST = 1000


@pytest.mark.parametrize("case", defaults(heads=2, state_size=8, head_dim=8), ids=str)
def test_a_short_row_is_the_start_of_a_long_one(case: Case):
    params = parameters(case.config)
    x_BLD = random_x(np.random.default_rng(0), 1, LONGEST)

    # The longest as a packed row of one document, which is the same.
    longest_ctx = single_context(1, LONGEST)
    if case.config.packable:
        longest_ctx = packed_context(np.full((1, LONGEST), 3))
    contexts = [*(single_context(1, length) for length in LENGTHS), longest_ctx]

    @jit
    def of_all_lengths(x_BLD):
        return [
            run(case.config, params, x_BLD[:, : ctx.positions_BL.shape[1]], ctx)[0]
            for ctx in contexts
        ]

    *shorter, longest = of_all_lengths(x_BLD)
    assert longest.shape == x_BLD.shape and bool(jnp.isfinite(longest).all())
    for length, y_BLD in zip(LENGTHS, shorter, strict=True):
        assert y_BLD.shape == (1, length, x_BLD.shape[-1])
        assert relative_rmse(y_BLD, longest[:, :length]) <= 1e-5
