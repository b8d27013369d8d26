"""Sparse attention: a token depends on the blocks of the pattern, on all of them and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid_lm.errors import UserError
from hybrid_lm.mixers import Sparse
from tests.laws.cases import WIDTH, parameters, random_x, run, single_context
from tests.numerics import jit

pytestmark = pytest.mark.thorough

CONFIG = Sparse(heads=1, block_size=3, local_blocks=2, stride=3, strided_blocks=2, global_blocks=1)
LENGTH = 50


def test_a_token_depends_on_the_blocks_of_the_pattern():
    x_BLD = random_x(np.random.default_rng(0), 1, LENGTH)
    params, ctx = parameters(CONFIG), single_context(1, LENGTH)

    @jit
    def influence(x_BLD):
        jacobian = jax.jacrev(lambda x: run(CONFIG, params, x, ctx)[0][0])(x_BLD)
        return jnp.abs(jacobian[:, :, 0]).max(axis=(1, 3))  # [output token, input token]

    random_JM = CONFIG.earlier_blocks(LENGTH, 1)[:, 0, -CONFIG.random_blocks :]
    expected = np.zeros((LENGTH, LENGTH), bool)
    for i in range(LENGTH):
        j = i // 3
        seen = {j, j - 1, j - 3, j - 6, 0, *random_JM[j]}
        expected[i] = [s <= i and s // 3 in seen for s in range(LENGTH)]
    np.testing.assert_array_equal(np.asarray(influence(x_BLD)) > 0, expected)


def test_random_blocks_are_earlier_ones_and_stay_when_the_row_grows():
    config = Sparse(random_blocks=3)
    blocks_JGM = config.earlier_blocks(60, 4)
    np.testing.assert_array_equal(config.earlier_blocks(20, 4), blocks_JGM[:20])
    random_JGM = blocks_JGM[..., -3:]
    before_J11 = np.maximum(np.arange(60) - config.local_blocks + 1, 0)[:, None, None]
    assert (random_JGM < before_J11).all()
    assert len(np.unique(random_JGM[30:])) > 25
    assert not np.array_equal(random_JGM[:, 0], random_JGM[:, 1])
    for number_M in blocks_JGM.reshape(-1, blocks_JGM.shape[-1]):
        drawn = number_M[number_M >= 0]
        assert len(np.unique(drawn)) == len(drawn)


@pytest.mark.parametrize(
    "fields", [{"block_size": 0}, {"random_blocks": -1}, {"heads": 3}], ids=str
)
def test_settings_that_do_not_fit_are_told(fields):
    with pytest.raises(UserError):
        Sparse(**fields).build(WIDTH, nnx.Rngs(0))
    with pytest.raises(UserError, match="no block but the latest"):
        Sparse(strided_blocks=0, global_blocks=0, random_blocks=0).build(WIDTH, nnx.Rngs(0))
